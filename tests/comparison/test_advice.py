import math

import pytest

from boxwright.comparison.advice import advise, noise
from boxwright.comparison.row import Row

FLAT = [(10.0, 0.3), (50.0, 0.5), (100.0, 0.5)]


def row(model: str, ap: float, ms: float, shift: float = 0.0, curve=FLAT, spread: float = 0.01) -> Row:
    """A detector whose AP on ten parts varies around its AP."""
    parts = [ap + spread * ((n * 7 + shift) % 5 - 2) for n in range(10)]
    return Row(model, {"AP": ap}, parts, [(s, ap * y / 0.5) for s, y in curve], 3, {"latency_ms": ms})


def test_a_clear_winner_that_is_fast_too_is_recommended():
    advice = advise([row("a", 0.5, 10), row("b", 0.3, 11)], 100)
    assert advice[0].startswith("Take a: it is the most accurate (AP 0.500)")
    assert "ahead of all others by more than the noise of 100 validation images" in advice[1]


def test_the_faster_of_two_equals_is_recommended():
    advice = advise([row("slow", 0.50, 40, shift=1), row("fast", 0.49, 10)], 100)
    assert advice[0].startswith("Take fast: AP 0.490, beside 0.500 of slow")
    assert "4.0 times faster (10.0 ms per image instead of 40.0 ms)" in advice[0]
    assert "within noise over: fast" in advice[1]


def test_much_less_accuracy_is_not_bought_for_speed():
    advice = advise([row("good", 0.5, 400), row("fast", 0.4, 10)], 100)
    assert advice[0].startswith("Take good")
    assert "fast is 40.0 times faster (10.0 ms per image instead of 400 ms), for an AP of 0.400" in advice[0]


def test_where_nothing_was_learnt_nothing_is_recommended():
    assert advise([row("a", 0.01, 1), row("b", 0.0, 2)], 9) == [
        "No recommendation: all detectors learned almost nothing (best AP 0.010). Give a larger budget."
    ]


def test_what_still_rises_and_what_learnt_nothing_is_named():
    rising = [(10.0, 0.1), (80.0, 0.2), (100.0, 0.5)]
    advice = " ".join(advise([row("a", 0.5, 10), row("b", 0.3, 10, curve=rising), row("c", 0.001, 10)], 100))
    assert "Still gaining when the time was up: b." in advice
    assert "Learned almost nothing in this budget: c (AP 0.001)" in advice
    assert "another seed" in advice


def test_what_to_try_is_said_for_each_that_has_learned_nothing():
    nothing = row("b", 0.0, 10)
    nothing.hints.extend(["more epochs: --epochs 9", "another size"])
    sentence = "For b (AP 0.000), try in this order: more epochs: --epochs 9; another size."
    assert sentence in advise([row("a", 0.5, 10), nothing], 100)
    assert sentence in advise([nothing], 100)


def test_what_each_is_best_at_is_said_where_its_lead_is_clear():
    a, b, c = row("a", 0.5, 10), row("b", 0.45, 40), row("c", 0.3, 41)
    for each, ece, small, parameters in ((a, 0.12, 0.2, 4e6), (b, 0.09, 0.4, 4.1e6), (c, 0.25, -1, 9e6)):
        each.stats.update(ECE=ece, APs=small)
        each.cost.update(parameters=parameters)
    said = " ".join(advise([a, b, c], 100))
    assert "What each is best at: a: the most accurate (AP 0.500), the fastest (10.0 ms per image); " in said
    assert "b: the best on small objects (AP 0.400), the best calibrated (ECE 0.090)." in said
    assert "Best at nothing that was measured: c." in said
    assert "smallest" not in said  # 4.0 and 4.1 M parameters are about the same


def test_how_far_the_scores_of_the_recommended_one_can_be_believed():
    a, b = row("a", 0.5, 10), row("b", 0.3, 10)
    a.stats["ECE"], b.stats["ECE"] = 0.04, 0.03
    assert "The scores of a are off by 0.040 on average (ECE): a score of 0.5 means about" in " ".join(
        advise([a, b], 9)
    )
    a.stats["ECE"] = 0.2
    said = " ".join(advise([a, b], 9))
    assert "off by 0.200 on average (ECE): evaluate shows what a score means. Those of b are off by 0.030." in said
    assert "ECE" not in " ".join(advise([row("a", 0.5, 10), b], 9)).replace("best calibrated (ECE", "")


def test_one_detector_is_not_compared():
    assert advise([row("a", 0.5, 10)], 100)[0] == "Only a was trained: AP 0.500, 10.0 ms per image."


def test_noise_is_that_of_paired_differences():
    one, other = row("a", 0.5, 1), row("b", 0.4, 1)
    assert noise(one, other) == pytest.approx(0, abs=1e-9)  # they differ by the same on each part
    parts = [0.0, 0.1, 0.2, -1.0]
    a, b = Row("a", {"AP": 0.1}, parts, [], 1), Row("b", {"AP": 0.0}, [0.0, 0.0, 0.0, 0.5], [], 1)
    assert noise(a, b) == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)  # Student's t, two degrees of freedom


def test_too_few_images_to_tell_are_reported():
    a, b = Row("a", {"AP": 0.5}, [0.5], FLAT, 1, {"latency_ms": 1}), Row("b", {"AP": 0.2}, [0.2], FLAT, 1)
    b.cost["latency_ms"] = 1
    assert math.isinf(noise(a, b))
    assert "1 validation images are too few" in advise([a, b], 1)[1]


def test_it_is_too_early_for_a_recommendation_under_an_ap_of_a_tenth() -> None:
    advice = advise([row("fast", 0.067, 10), row("slow", 0.06, 40)], 100)
    assert advice[0].startswith("Too early to say which one to take: the best AP is 0.067 (fast).")
    assert not any(sentence.startswith("Take ") for sentence in advice)
