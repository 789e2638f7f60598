"""The line of a library's error that says what is wrong."""

from __future__ import annotations

from edgeq.core.errors import telling_line

PLACES = "Exception from src/inference/src/cpp/core.cpp:117:\nException from src/inference/src/dev/plugin.cpp:54:\n"


def test_places_in_openvinos_source_are_passed_over_and_the_last_one_tells_most_where_there_is_nothing_else():
    check = "Check 'm_element_type.is_static()' failed at src/inference/src/dev/make_tensor.cpp:58"
    assert telling_line(f"{PLACES}{check}\n\n\n") == check
    assert telling_line(f"{PLACES}{check}:\nthe type is not known\n") == "the type is not known"
    assert telling_line("\n") == ""
