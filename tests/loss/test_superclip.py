"""SuperCLIP's loss against loops over captions and tokens, forward and gradient, on one process and on two."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from powerclip.loss import SuperCLIPLoss, clip_loss
from powerclip.loss.superclip import contained_tokens, inverse_document_frequency, token_loss
from powerclip.types import Features
from tests.support.processes import run_on_processes

V, D, T, START, END = 11, 4, 7, 9, 10


def captions(B=5, seed=0):
    """(B, T) ids: a start, words that may repeat and may be 0, an end, and padding with 0."""
    g = torch.Generator().manual_seed(seed)
    ids, mask = torch.zeros(B, T, dtype=torch.int64), torch.zeros(B, T, dtype=torch.bool)
    for b in range(B):
        words = torch.randint(0, 6, (1 + b % (T - 2),), generator=g).tolist()
        said = [START, *words, END]
        ids[b, : len(said)], mask[b, : len(said)] = torch.tensor(said), True
    return ids, mask


def features(seed=0, B=5, rows=slice(None)):
    g = torch.Generator().manual_seed(seed)
    patches = torch.randn(B, 3, D, generator=g, dtype=torch.float64)
    tokens = torch.randn(B, T, D, generator=g, dtype=torch.float64)
    ids, mask = captions(B, seed)
    none = torch.zeros(B, 0, D)[rows]
    return Features(
        image=normalize(patches.mean(dim=1), dim=-1)[rows],
        text=normalize(tokens.mean(dim=1), dim=-1)[rows],
        regions=none,
        region_mask=none[..., 0] > 0,
        phrases=none,
        phrase_mask=none[..., 0] > 0,
        logit_scale=torch.tensor(5.0, dtype=torch.float64),
        patches=patches[rows].clone().requires_grad_(),
        tokens=tokens[rows],
        token_mask=mask[rows],
        token_ids=ids[rows],
    )


def loss_with_a_head(**options):
    loss = SuperCLIPLoss(dimension=D, vocabulary=V, **options).double()
    g = torch.Generator().manual_seed(3)
    for parameter in loss.head.parameters():
        torch.nn.init.normal_(parameter, generator=g)
    return loss


class Counted:
    """The document counts that the loss should have, by loops."""

    def __init__(self):
        self.times, self.number = [0] * V, 0

    def weights(self, captions):
        for caption in captions:
            self.number += 1
            for token in caption:
                self.times[token] += 1
        return [max(0.0, math.log(self.number / (1 + times))) for times in self.times]


def sets_of(ids, mask):
    return [{int(t) for t, here in zip(*row, strict=True) if here} for row in zip(ids, mask, strict=True)]


def looped(head, patches, captions, weights):
    total = 0
    for b, caption in enumerate(captions):
        mean = sum(patches[b]) / len(patches[b])
        logits = [sum(w * x for w, x in zip(row, mean, strict=True)) + bias for row, bias in zip(*head, strict=True)]
        norm = sum(weights[t] for t in caption)
        for t in caption:
            if norm > 0:
                total = total - weights[t] / norm * (logits[t] - torch.stack(logits).logsumexp(dim=0))
    return total / len(captions)


def test_the_loss_is_its_formula_over_steps_forward_and_gradient():
    loss, counted = loss_with_a_head(weight=0.7), Counted()
    for seed in range(3):
        loss.zero_grad()
        x = features(seed=seed)
        output = loss(x)
        output.total.backward()
        said = sets_of(x.token_ids, x.token_mask)
        weights = counted.weights(said)
        parameters = [p.detach().clone().requires_grad_() for p in (loss.head.weight, loss.head.bias)]
        patches = x.patches.detach().clone().requires_grad_()
        token = looped(parameters, patches, said, weights)
        clip = clip_loss(x.image, x.text, x.logit_scale)
        (0.7 * token).backward()
        tolerance = {"rtol": 1e-6, "atol": 1e-6}  # frequencies are computed in float32
        torch.testing.assert_close(output.terms["token"], token, **tolerance)
        torch.testing.assert_close(output.total, clip + 0.7 * token, **tolerance)
        found = (x.patches, loss.head.weight, loss.head.bias)
        for mine, expected in zip(found, (patches, *parameters), strict=True):
            torch.testing.assert_close(mine.grad, expected.grad, **tolerance)
    assert loss.counts.tolist() == counted.times
    assert loss.documents == 15
    assert output.terms["token"] > 0


def test_gradients_are_those_of_finite_differences():
    ids, mask = captions()
    contained = contained_tokens(ids, mask, vocabulary=V)
    weights = torch.rand(V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = torch.randn(5, V, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: token_loss(x, contained, weights), logits)


def test_tokens_are_contained_once_and_padding_is_none():
    contained = contained_tokens(*captions(), vocabulary=V)
    assert [{t for t in range(V) if row[t]} for row in contained.tolist()] == sets_of(*captions())


def test_a_token_of_every_caption_weighs_nothing():
    weights = inverse_document_frequency(torch.tensor([4, 3, 1, 0]), torch.tensor(4))
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.0, math.log(2), math.log(4)]))
    assert inverse_document_frequency(torch.zeros(3, dtype=torch.int64), torch.tensor(0)).tolist() == [0, 0, 0]


def test_captions_without_a_token_of_weight_add_nothing():
    contained = torch.tensor([[True, False], [False, True], [False, False]])
    logits = torch.tensor([[1.0, 2.0]] * 3, requires_grad=True)
    loss = token_loss(logits, contained, torch.tensor([0.0, 2.0]))
    loss.backward()
    torch.testing.assert_close(loss.detach(), -torch.tensor([1.0, 2.0]).log_softmax(0)[1] / 3)
    assert not logits.grad[[0, 2]].any()


def test_counts_are_saved_and_stay_in_evaluation():
    loss = loss_with_a_head()
    loss(features())
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    assert set(state) == {"head.weight", "head.bias", "counts", "documents"}
    loss.eval()
    loss(features(seed=1))
    assert loss.documents == 5
    resumed = loss_with_a_head()
    resumed.load_state_dict(state)
    loss.train()
    assert resumed(features(seed=2)).total == loss(features(seed=2)).total


def test_a_head_at_the_start_is_equally_unsure_of_all_tokens():
    loss = SuperCLIPLoss(dimension=D, vocabulary=V).double()
    output = loss(features())
    unweighted = sum(all(loss.counts[t] >= 4 for t in said) for said in sets_of(*captions()))
    assert output.terms["token"].item() == pytest.approx(math.log(V) * (5 - unweighted) / 5)


def test_what_is_missing_or_wrong_is_named():
    x = features()
    loss = loss_with_a_head()
    for name, message in (("token_ids", "lack token_ids"), ("patches", "lack patches, tokens or token_mask")):
        with pytest.raises(ValueError, match=message):
            loss(Features(**{**vars(x), name: None}))
    with pytest.raises(ValueError, match="weight is -1; it must be 0 or more"):
        SuperCLIPLoss(dimension=D, vocabulary=V, weight=-1)


def steps_of(rows):
    loss, found = loss_with_a_head(), []
    for seed in range(2):
        loss.zero_grad()
        x = features(seed=seed, rows=rows)
        output = loss(x)
        output.total.backward()
        found.append((output.terms["token"].detach(), x.patches.grad, loss.head.weight.grad.clone()))
    return found, loss.counts


def shares(process, size):
    return steps_of((slice(0, 3), slice(3, 5))[process])


def test_two_processes_have_the_loss_the_gradient_and_the_counts_of_one(tmp_path):
    results = run_on_processes(2, shares, tmp_path)
    whole, counts = steps_of(slice(None))
    for step, (token, of_patches, of_head) in enumerate(whole):
        parts = [found[step] for found, _ in results]
        for part in parts:
            torch.testing.assert_close(part[0], token, rtol=0, atol=1e-12)
        torch.testing.assert_close(torch.cat([part[1] for part in parts]), of_patches, rtol=0, atol=1e-12)
        torch.testing.assert_close(sum(part[2] for part in parts), of_head, rtol=0, atol=1e-12)
    for _, found in results:
        assert torch.equal(found, counts)
