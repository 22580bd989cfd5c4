"""Several captions of an image, each a positive of it: every loss against nested loops, in pieces and on processes."""

import pytest
import torch
from torch.nn.functional import logsigmoid, normalize

from powerclip.config import ContrastConfig
from powerclip.loss import PowersetAlignmentLoss, SuperCLIPLoss, clip_loss
from powerclip.loss.filip import filip_loss
from powerclip.loss.siglip import siglip_loss
from powerclip.loss.sparc import sparc_loss
from powerclip.types import Features
from tests.support.problems import problem, rows_of, scores_by_loops, value_and_gradients
from tests.support.processes import run_on_processes

C, N, TAU, MARGIN = 7, 3, 0.1, 0.2
SCALE, BIAS = torch.tensor(7.0, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)


def unit(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def contrast_by_loops(i2t, t2i):
    """Of logits of images (C, C n) and of captions (C n, C)."""
    n = len(t2i) // len(i2t)
    images = [-i2t[i].log_softmax(dim=0)[i * n + k] / n for i in range(len(i2t)) for k in range(n)]
    captions = [-t2i[j].log_softmax(dim=0)[j // n] for j in range(len(t2i))]
    return (sum(images) / len(i2t) + sum(captions) / len(t2i)) / 2


def clip_by_loops(image, text):
    return contrast_by_loops(SCALE * image @ text.T, SCALE * text @ image.T)


def siglip_by_loops(image, text):
    n, total = len(text) // len(image), 0
    for i, x in enumerate(image):
        for j, y in enumerate(text):
            total = total - logsigmoid((1 if j // n == i else -1) * (SCALE * x @ y + BIAS))
    return total / len(text)


def filip_by_loops(patches, tokens):
    s = [[normalize(p, dim=-1) @ normalize(t, dim=-1).T for t in tokens] for p in patches]  # each (N, T)
    i2t = torch.stack([torch.stack([x.amax(dim=1).mean() for x in row]) for row in s])
    t2i = torch.stack([torch.stack([x.amax(dim=0).mean() for x in row]) for row in s]).T
    return contrast_by_loops(SCALE * i2t, SCALE * t2i)


def sparc_by_loops(patches, tokens):
    """The mean of what each caption gives alone with its image."""
    n, mask = len(tokens) // len(patches), torch.ones(1, tokens.shape[1], dtype=torch.bool)
    of_each = [sparc_loss(patches[j // n][None], tokens[j][None], mask, SCALE) for j in range(len(tokens))]
    return sum(of_each) / len(tokens)


def all_tokens(tokens):
    return torch.ones(tokens.shape[:2], dtype=torch.bool)


DENSE = unit(C, 5, 6, seed=2), unit(C * N, 4, 6, seed=3)
LOSSES = {
    "clip": (lambda x, y: clip_loss(x, y, SCALE), clip_by_loops, (unit(C, 6, seed=0), unit(C * N, 6, seed=1))),
    "siglip": (
        lambda x, y: siglip_loss(x, y, SCALE, BIAS), siglip_by_loops, (unit(C, 6, seed=0), unit(C * N, 6, seed=1))
    ),
    "filip": (lambda x, y: filip_loss(x, y, all_tokens(y), SCALE), filip_by_loops, DENSE),
    "sparc": (lambda x, y: sparc_loss(x, y, all_tokens(y), SCALE), sparc_by_loops, DENSE),
}  # fmt: skip


def close(mine, theirs):
    for value, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_loops_forward_and_gradient(name):
    loss, loops, inputs = LOSSES[name]
    close(value_and_gradients(loss, *inputs), value_and_gradients(loops, *inputs))


def test_superclip_tells_the_tokens_of_each_caption_from_the_image():
    patches, tokens = DENSE
    ids = torch.randint(0, 20, tokens.shape[:2], generator=torch.Generator().manual_seed(4))
    ends = dict.fromkeys(("region_mask", "phrase_mask"), torch.ones(C, 1).bool())
    batch = Features(
        image=unit(C, 6, seed=0), text=unit(C * N, 6, seed=1), regions=patches, phrases=tokens, **ends,
        logit_scale=SCALE, patches=patches, tokens=tokens, token_mask=all_tokens(tokens), token_ids=ids,
    )  # fmt: skip
    loss = SuperCLIPLoss(dimension=6, vocabulary=20).double()
    generator = torch.Generator().manual_seed(5)
    for parameter in loss.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    found = loss(batch).terms["token"]
    of_words = [set(row.tolist()) for row in ids]
    weights = [max(0.0, torch.tensor(C * N / (1 + sum(t in w for w in of_words))).log().item()) for t in range(20)]
    total = 0
    for j, words in enumerate(of_words):
        logits = loss.head(patches[j // N].mean(dim=0)).log_softmax(dim=0)
        total = total - sum(weights[t] * logits[t] for t in words) / sum(weights[t] for t in words)
    torch.testing.assert_close(found, total / (C * N), rtol=1e-6, atol=0)  # the weights of the loops are float32's


FORMS = {
    "hardest": ContrastConfig(),
    "detached": ContrastConfig(centre_scores="detached"),
    "mean, full": ContrastConfig(negatives="mean", centre_scores="full"),
    "logsumexp": ContrastConfig(negatives="logsumexp", negatives_temperature=0.05),
    "softmax": ContrastConfig(form="softmax"),
    "sigmoid": ContrastConfig(form="sigmoid"),
}
IDS = torch.arange(C * N)
IDS[[4, 10, 18]] = 0  # captions of the images 1, 3 and 6 are one of image 0
IDS[9] = 16  # and one of image 3 is one of image 5


def scenes(n=N, seed=0):
    """Images with n captions each; image 2 has no region, and captions 4, 6, 7 and 8 have no phrase."""
    regions, phrases, region_mask, phrase_mask = problem(C, C * n, 4, 3, seed=seed)
    region_mask[2] = False
    phrase_mask[[4, 6, 7, 8]] = False
    return regions, phrases, region_mask, phrase_mask


def powerset_by_loops(S, region_mask, phrase_mask, ids, config, state):
    n = len(phrase_mask) // len(region_mask)
    pairs = [(j // n, j) for j in range(len(phrase_mask)) if region_mask[j // n].any() and phrase_mask[j].any()]
    images, captions = sorted({i for i, _ in pairs}), [j for _, j in pairs]
    own = {i: {int(ids[i * n + k]) for k in range(n)} for i in images}
    if config.centre_scores != "none":
        known = S.detach() if config.centre_scores == "detached" else S
        rows = {i: sum(known[i, j] for j in captions) / len(captions) for i in images}
        columns = {j: sum(known[i, j] for i in images) / len(images) for j in captions}
        every = sum(rows.values()) / len(rows)
        S = {(i, j): S[i, j] - rows[i] - columns[j] + every for i in images for j in captions}
    negatives = {(i, j) for i in images for j in captions if j // n != i and int(ids[j]) not in own[i]}
    total = 0
    for i, j in pairs:
        others = [S[i, b] for b in captions if (i, b) in negatives], [S[a, j] for a in images if (a, j) in negatives]
        if config.form == "softmax":
            scale = state[0].exp()
            positives = [S[i, b] for a, b in pairs if a == i], [S[i, j]]
            for found, right in zip(others, positives, strict=True):
                total = total + (sum((scale * x).exp() for x in [*found, *right]).log() - scale * S[i, j]) / 2
        elif config.form == "sigmoid":
            total = total - logsigmoid(state[0].exp() * S[i, j] + state[1])
        elif config.negatives == "mean":
            hinges = [[(MARGIN + x - S[i, j]).clamp(min=0) for x in found] for found in others]
            total = total + sum(sum(x) / len(x) for x in hinges)
        else:
            t = config.negatives_temperature
            for found in others:
                highest = max(found) if config.negatives == "hardest" else t * sum((x / t).exp() for x in found).log()
                total = total + (MARGIN + highest - S[i, j]).clamp(min=0)
    if config.form == "sigmoid":
        total = total - sum(logsigmoid(-(state[0].exp() * S[i, j] + state[1])) for i, j in negatives)
    return total / len(pairs)


def powerset(config, **options):
    options = {"margin": MARGIN, "tau": TAU, "normalise_by_regions": True, "contrast": config, **options}
    return PowersetAlignmentLoss(**options).double()


@pytest.mark.parametrize("ids", [None, IDS], ids=["own captions", "equal captions"])
@pytest.mark.parametrize("name", FORMS)
def test_a_form_of_the_powerset_loss_is_its_loops(name, ids):
    regions, phrases, *masks = scenes()
    module = powerset(FORMS[name])
    state = [parameter.detach() for parameter in module.parameters()]

    def loops(r, p):
        S = scores_by_loops(r, p, *masks, tau=TAU)
        return powerset_by_loops(S, *masks, torch.arange(C * N) if ids is None else ids, FORMS[name], state)

    mine = value_and_gradients(lambda r, p: module(r, p, *masks, caption_ids=ids), regions, phrases)
    assert mine[0] > 0
    close(mine, value_and_gradients(loops, regions, phrases))


@pytest.mark.parametrize("zero", ["midpoint", "matched", "learned", "centred"])
def test_a_caption_given_several_times_is_that_caption(zero):
    """The loss, where the zero is put, and the measures; only a calibrated zeta is fitted to other pairs."""
    regions, phrases, region_mask, phrase_mask = problem(C, C, 4, 3)
    both = []
    for n in (1, N):
        module, measures = powerset(ContrastConfig(), zero=zero, dimension=6), {}
        p, mask = (x.repeat_interleave(n, dim=0) for x in (phrases, phrase_mask))
        value = module(regions, p, region_mask, mask, measures=measures)
        both.append({"loss": value.detach(), **measures, **module.fitted})
        calibrated = powerset(ContrastConfig(), zeta="calibrated")
        calibrated(regions, p, region_mask, mask)
        assert 0 < calibrated.fitted["zeta"] < 1
    assert both[0].keys() == both[1].keys() >= {"loss", "matched_above_zero_share", "active_share_i2t", "hub_share_i2t"}
    for name, value in both[0].items():
        assert float(both[1][name]) == pytest.approx(float(value), rel=1e-9), name


def test_captions_that_do_not_fit_the_images_are_named():
    for loss, _, (x, y) in (LOSSES["clip"], LOSSES["siglip"]):
        with pytest.raises(ValueError, match=r"expected both \(B, D\), or n captions of each image, \(B n, D\)"):
            loss(x, y[:-1])
    regions, phrases, *_ = scenes()
    with pytest.raises(ValueError, match="7 images and phrases 20 captions; .*the same number of captions for each"):
        powerset(ContrastConfig())(regions, phrases[:-1])


COUNTS = [3, 0, 4]
"""Images of each process, of which one has none."""


def on_a_process(process, size):
    """Value and gradients, of all losses, of a process's own images and captions."""
    results = []

    def add(loss, image, text, *rest, counts=COUNTS):
        counts = [C] if size == 1 else counts
        own = rows_of(process, counts, [image, *rest[:1]])
        captions = rows_of(process, [count * N for count in counts], [text, *rest[1:]])
        results.append(value_and_gradients(lambda x, y: loss(x, y, *own[1:], *captions[1:]), own[0], captions[0]))

    for loss, _, inputs in LOSSES.values():
        add(loss, *inputs, counts=[2, 2, 3] if inputs is DENSE else COUNTS)
    for config in FORMS.values():
        for ids in (None, IDS):
            module = powerset(config)
            if ids is None:
                add(module, *scenes())
            else:
                add(lambda r, p, rm, pm, i, module=module: module(r, p, rm, pm, caption_ids=i), *scenes(), ids)
    return results


def test_many_processes_are_one_with_the_whole_batch(tmp_path):
    expected = on_a_process(0, 1)
    found = run_on_processes(len(COUNTS), on_a_process, tmp_path)
    for (value, *gradients), *parts in zip(expected, *found, strict=True):
        values, images, texts = zip(*parts, strict=True)
        close(values, [value] * len(COUNTS))
        close(gradients, (torch.cat(images), torch.cat(texts)))
