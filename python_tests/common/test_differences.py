"""How two descriptions differ, in words."""

from nft_ext._common.differences import differences, listed


def test_nested_fields_are_named_by_their_path():
    one, other = {"a": 1, "b": {"c": {"d": 2.0, "e": "x"}}}, {"a": 1, "b": {"c": {"d": 3.0, "e": "x"}}}
    assert differences(one, other) == [("b.c.d", "2.0", "3.0")]


def test_a_missing_field_is_another_value_than_none():
    assert differences({"a": None}, {}) == [("a", "None", "nothing")]
    assert differences({}, {"a": "nothing"}) == [("a", "nothing", "nothing")]
    assert differences({"a": {}}, {"a": {"b": 1}}) == [("a.b", "nothing", "1")]


def test_a_tuple_is_the_list_that_json_makes_of_it():
    assert differences({"a": (1, 2)}, {"a": [1, 2]}) == []


def test_long_values_are_cut():
    (hashes,) = differences({"a": "0123456789ab" * 6}, {"a": "ba9876543210" * 6})
    assert hashes[1:] == ("0123456789ab...", "ba9876543210...")
    (words,) = differences({"a": "word " * 100}, {"a": None})
    assert len(words.one) == 200 and words.one.endswith("...")


def test_the_list_ends_after_eight():
    found = differences({str(n): n for n in range(10)}, {})
    assert listed(found[:1], "there", "here") == "0: 0 there, nothing here"
    assert listed(found, "there", "here").endswith("7: 7 there, nothing here; and 2 more")
    assert listed([], "there", "here") == ""
