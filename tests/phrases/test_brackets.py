import pytest

from powerclip.phrases.brackets import parse_brackets, tree_of_nodes, write_brackets

TREE = "(S (NP (NP (DT A) (NN dog)) (-NONE- *)) (VP (VBZ is) (PP (IN on) (NP (DT the) (NN chair)))) (. .))"


def test_a_bracketed_tree_is_laid_over_its_caption():
    caption = "A dog  is on the chair."
    tree = tree_of_nodes(parse_brackets(TREE), caption, parser="x")
    assert write_brackets(caption, tree) == "[S [NP A dog]  [VP is [PP on [NP the chair]]]]."
    with pytest.raises(ValueError, match="the tree's word 'dog' is not in the caption at ' cat'"):
        tree_of_nodes(parse_brackets(TREE), "A cat", parser="x")


@pytest.mark.parametrize("wrong", ["", "(S (NP", "S)", "(a))", "(" * 500, "a (b c)", "(-NONE- *)"])
def test_what_is_not_a_bracketed_tree(wrong):
    with pytest.raises(ValueError, match="bracket"):
        parse_brackets(wrong)


def test_the_outer_of_two_equal_spans_gives_the_label():
    tree = tree_of_nodes(parse_brackets("(FRAG (NP-SBJ (NP (PP (IN of) (NN gold)))))"), "of gold", parser="x")
    assert [(p.label, p.first, p.last) for p in tree.phrases] == [("NP", 0, 1)]


def test_escaped_brackets_are_signs_and_deep_trees_are_read():
    caption = "a dog (small)"
    text = "(NP (DT a) (NN dog) (PRN (-LRB- -LRB-) (NP (JJ small)) (-RRB- -RRB-)))"
    assert (
        write_brackets(caption, tree_of_nodes(parse_brackets(text), caption, parser="x")) == "[NP a dog ([NP small]])"
    )
    deep = tree_of_nodes(parse_brackets("(NP " * 200 + "dog" + ")" * 200), "dog", parser="x")
    assert [(p.label, p.first, p.last) for p in deep.phrases] == [("NP", 0, 0)]


def test_the_treebanks_marks_are_no_leaves_but_emoji_are():
    caption = "a | + 。 ★ 🎂 犬"
    tree = tree_of_nodes(
        parse_brackets(f"(NP {' '.join(f'(X {word})' for word in caption.split())})"), caption, parser="x"
    )
    assert [caption[start:end] for start, end in tree.leaves] == ["a", "★", "🎂", "犬"]
