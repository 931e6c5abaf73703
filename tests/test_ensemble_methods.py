"""The rules of combination by hand, and what fitted weights promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata

from lmm_ecr.ensemble_fit import cross_validate, fit
from lmm_ecr.ensemble_folds import fold_of, hash_order, id_hashes
from lmm_ecr.ensemble_methods import FITTED, METHODS, Combination, Scale, combine, spread, without_member
from lmm_ecr.ensemble_search import (
    FinalScore,
    best_single,
    convex_plcc_weights,
    forward_selection,
    simplex_search,
)
from lmm_ecr.metrics import final_score, plcc, rmse, srocc

RELAXED = settings(max_examples=80, deadline=None)
UNIT = st.floats(0, 1, allow_subnormal=False)
MATRIX = st.tuples(st.integers(1, 5), st.integers(1, 30)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=UNIT)
)


def noisy_members(noise, n=600, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.random(n)
    values = [0.3 + 0.4 * labels + sigma * rng.normal(size=n) for sigma in noise]
    return np.clip(values, 0, 1), labels


def score_of(predictions, labels):
    return final_score(srocc(predictions, labels), plcc(predictions, labels))


def test_rules_by_hand():
    values = np.array([[0.1, 0.5, 0.9], [0.2, 0.4, 0.3], [0.6, 0.9, 0.0]])
    np.testing.assert_allclose(combine(values, Combination("mean")), [0.3, 0.6, 0.4], rtol=1e-15)
    assert combine(values, Combination("median")).tolist() == [0.2, 0.5, 0.3]
    weighted = combine(values, Combination("weighted", np.array([0.5, 0.5, 0.0])))
    np.testing.assert_allclose(weighted, [0.15, 0.45, 0.6], rtol=1e-15)
    scale = Scale(centre=np.array([0.1, 0.4, 0.5]), width=np.array([0.1, 0.2, 0.5]), slope=0.5, intercept=0.3)
    stack = combine(values, Combination("stack", np.array([0.2, 0.0, -0.3]), scale))
    # z of the first member: 0, 4, 8; of the third: 0.2, 0.8, -1
    np.testing.assert_allclose(stack, [0.3 - 0.03, 0.3 + 0.4 - 0.12, 1.0], rtol=1e-14)
    # with widths of 1 and centres of 0 weights are those of a plain weighted mean
    plain = Scale(np.zeros(3), np.ones(3), 1.0, 0.0)
    np.testing.assert_allclose(combine(values, Combination("weighted", np.array([0.5, 0.5, 0.0]), plain)), weighted)
    np.testing.assert_allclose(spread(values), values.std(axis=0), rtol=1e-14)


def test_rank_by_hand():
    """Ranks 1 2 3 4 and 2 1 3 4 sum to 3 3 6 8; the means are .15 .15 .35 .7 sorted. Rows 0 and 1 tie for the places
    1 and 2 and share the mean of .15 and .15; then .35 and .7 keep their order."""
    values = np.array([[0.1, 0.2, 0.3, 0.9], [0.2, 0.1, 0.4, 0.5]])
    np.testing.assert_allclose(combine(values, Combination("rank")), [0.15, 0.15, 0.35, 0.7], rtol=1e-15)


def test_rank_uses_order_where_scales_differ():
    """The second member lives on a tenth of the scale. By ranks it counts as much: row 2 (ranks 2 + 4) passes row 3
    (ranks 3 + 1); the values are those of the mean."""
    values = np.array([[0.0, 0.5, 0.6, 1.0], [0.01, 0.04, 0.0, 0.03]])
    ranks = combine(values, Combination("rank"))
    assert ranks[1] > ranks[2]
    assert sorted(ranks) == pytest.approx(sorted(values.mean(axis=0)), rel=1e-12)


def test_logit_by_hand():
    values = np.array([[0.5, 0.0, 1.0], [0.8, 0.0, 1.0]])
    combined = combine(values, Combination("logit"))
    assert combined[0] == pytest.approx(2 / 3, rel=1e-12)  # odds 1 and 4: their geometric mean is 2
    assert combined[1] == pytest.approx(1e-6, rel=1e-9)
    assert combined[2] == pytest.approx(1 - 1e-6, rel=1e-12)


@RELAXED
@given(values=MATRIX, data=st.data())
def test_every_rule_stays_in_range_and_follows_its_rows(values, data):
    order = np.array(data.draw(st.permutations(range(values.shape[1]))))
    weights = np.array(data.draw(st.lists(UNIT, min_size=len(values), max_size=len(values)))) + 1e-3
    for method in METHODS:
        fitted = method in FITTED
        combination = Combination(method, weights / weights.sum() if fitted else None)
        scores = combine(values, combination)
        assert scores.shape == (values.shape[1],)
        assert scores.min() >= 0
        assert scores.max() <= 1
        np.testing.assert_array_equal(combine(values[:, order], combination), scores[order])
        if method not in ("logit", "rank"):
            assert (scores >= values.min(axis=0) - 1e-15).all()
            assert (scores <= values.max(axis=0) + 1e-15).all()


@RELAXED
@given(member=arrays(np.float64, st.integers(1, 40), elements=UNIT), copies=st.integers(1, 12))
def test_identical_members_give_the_member(member, copies):
    values = np.tile(member, (copies, 1))
    weights = np.linspace(1, 2, copies) / np.linspace(1, 2, copies).sum()
    for combination in (
        Combination("mean"),
        Combination("median"),
        Combination("rank"),
        Combination("weighted", weights),
    ):
        np.testing.assert_array_equal(combine(values, combination), member, err_msg=combination.method)
    np.testing.assert_allclose(combine(values, Combination("logit")), np.clip(member, 1e-6, 1 - 1e-6), rtol=1e-9)
    assert (spread(values) == 0).all()


def test_the_quick_score_is_that_of_the_metrics():
    values, labels = noisy_members([0.1, 0.3], n=400)
    score = FinalScore(values, labels)
    for weights in ([1, 0], [0.3, 0.7], [0, 2]):
        weights = np.array(weights, dtype=float)
        assert score(weights) == pytest.approx(score_of(weights @ values, labels), abs=1e-12)
    coarse = np.round(values, 1)  # ties
    weights = np.array([0.5, 0.5])
    assert FinalScore(coarse, labels)(weights) == pytest.approx(score_of(weights @ coarse, labels), abs=1e-12)
    assert score(np.zeros(2)) == -1.0


def test_plcc_weights_are_optimal_and_handle_copies_and_useless_members():
    """Noise of 0.1 and 0.2: the best weights are in the ratio of the inverse variances, 4 to 1."""
    values, labels = noisy_members([0.05, 0.1], n=200_000)
    weights = convex_plcc_weights(values, labels)
    np.testing.assert_allclose(weights, [0.8, 0.2], atol=0.02)
    base = plcc(weights @ values, labels)
    for shift in (-0.05, 0.05):
        assert plcc(np.add(weights, [shift, -shift]) @ values, labels) < base
    copies = convex_plcc_weights(np.stack([values[0], values[0], 1 - values[1]]), labels)
    assert copies.sum() == pytest.approx(1)
    assert copies[2] == 0
    hopeless = convex_plcc_weights(1 - values, labels)
    assert hopeless.tolist() == [0.5, 0.5]
    assert convex_plcc_weights(np.full((2, 10), 0.5), labels[:10]).tolist() == [0.5, 0.5]


def test_searches_never_end_below_their_start():
    values, labels = noisy_members([0.2, 0.25, 0.6, 1.0], seed=3)
    score = FinalScore(values, labels)
    singles = [score.of(member) for member in values]
    assert score(best_single(score)) == pytest.approx(max(singles))
    for start in (np.full(4, 0.25), best_single(score), np.array([0.0, 0.0, 0.0, 1.0])):
        found = simplex_search(score, start)
        assert found.min() >= 0
        assert found.sum() == pytest.approx(1)
        assert score(found) >= score(start) - 1e-12
    bag = forward_selection(score)
    assert bag.min() >= 0
    assert bag.sum() == pytest.approx(1)
    assert score(bag) >= max(singles) - 1e-12


def test_forward_selection_leaves_out_what_does_not_help():
    rng = np.random.default_rng(1)
    labels = rng.random(2000)
    values = np.stack([labels, rng.random(2000), rng.random(2000)])
    assert forward_selection(FinalScore(values, labels)).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("method", FITTED)
@pytest.mark.parametrize("noise", [[0.1, 0.8, 0.8], [0.3, 0.3], [0.2, 0.25, 0.3, 0.9], [0.3, 0.3001, 2.0]])
@pytest.mark.parametrize("seed", [0, 1])
def test_fitted_weights_do_not_lose_to_the_best_member(method, noise, seed):
    """In cross-validated score, by more than noise: the paired error of the difference at n = 600 is about 0.01."""
    values, labels = noisy_members(noise, seed=seed)
    folds = fold_of(id_hashes(map(str, range(len(labels)))))
    crossed = cross_validate(method, values, labels, folds)
    assert score_of(crossed, labels) > max(score_of(member, labels) for member in values) - 0.01


@RELAXED
@given(
    noise=st.lists(st.floats(0.02, 1.0), min_size=1, max_size=5),
    squeeze=st.lists(st.sampled_from([1.0, 0.3, 0.01, 1e-4, 0.0]), min_size=5, max_size=5),
    shift=st.lists(st.floats(0, 0.5), min_size=5, max_size=5),
    method=st.sampled_from(FITTED),
    seed=st.integers(0, 99),
)
def test_fits_do_not_care_about_the_scale_of_members(noise, squeeze, shift, method, seed):
    """A member that has collapsed to a hundredth of the others' spread, or to a constant: the cross-validated score
    is no lower than the best member's by more than noise, and the values stay on the scale of the labels."""
    values, labels = noisy_members(noise, n=400, seed=seed)
    folds = fold_of(id_hashes(map(str, range(len(labels)))))
    squeezed = np.stack([at + factor * (v - 0.5) for v, factor, at in zip(values, squeeze, shift, strict=False)]) + 0.25
    squeezed = np.clip(squeezed, 0, 1)
    singles = [score_of(member, labels) for member in squeezed if np.ptp(member) > 0]
    crossed = cross_validate(method, squeezed, labels, folds)
    if singles:
        assert score_of(crossed, labels) > max(singles) - 0.04
        assert rmse(crossed, labels) < 1.03 * labels.std()


def test_a_collapsed_member_neither_takes_over_nor_squeezes_the_scores():
    """The case this was built for: an excellent but collapsed model beside a good one. With weights on raw scores the
    collapsed one had 98 % of the weight and the RMSE was 0.20 instead of 0.05."""
    rng = np.random.default_rng(4)
    labels = rng.random(2000)
    good = np.clip(labels + 0.08 * rng.normal(size=2000), 0, 1)
    collapsed = 0.5 + 0.01 * (labels - 0.5 + 0.08 * rng.normal(size=2000))
    values = np.stack([good, collapsed])
    folds = fold_of(id_hashes(map(str, range(2000))))
    for method in FITTED:
        combination = fit(method, values, labels)
        crossed = cross_validate(method, values, labels, folds)
        assert score_of(crossed, labels) > score_of(good, labels) + 0.01
        assert rmse(crossed, labels) < 0.065 < rmse(good, labels)
        shares = combination.weights / combination.weights.sum()
        np.testing.assert_allclose(shares, 0.5, atol=0.1)
        assert rmse(combine(values, combination), labels) < 0.065


@pytest.mark.parametrize("method", FITTED)
def test_a_common_map_of_all_members_changes_no_score(method):
    """Members on another scale (a tenth, moved by 0.4) lead to the same ensemble, as labels fix its scale."""
    values, labels = noisy_members([0.1, 0.2, 0.3], n=300)
    expected = combine(values, fit(method, values, labels))
    moved = 0.4 + 0.1 * values
    np.testing.assert_allclose(combine(moved, fit(method, moved, labels)), expected, atol=1e-7)


@pytest.mark.parametrize("method", FITTED)
def test_weak_signals_are_not_lost_by_pooling_folds(method):
    """Lines fitted per fold run against the held-out labels: a member that is worth 0.1 would be scored near 0. What
    `weighted` and `greedy` make of a single member is that member."""
    losses = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = rng.random(200)
        member = np.clip(0.5 + 0.03 * (labels - 0.5) + 0.1 * rng.normal(size=200), 0, 1)
        crossed = cross_validate(method, member[None], labels, np.arange(200) % 5)
        losses.append(score_of(member, labels) - score_of(crossed, labels))
    assert np.median(losses) < 1e-3
    assert np.mean(losses) < (0.03 if method == "stack" else 1e-3)  # ridge may turn so weak a member around


@pytest.mark.parametrize("method", FITTED)
def test_cross_validation_never_sees_the_rows_it_scores(method):
    """On labels without any relation to the members every honest score is near zero, also with many members."""
    rng = np.random.default_rng(5)
    values, labels = rng.random((12, 400)), rng.random(400)
    seen = []

    def spy(method, values, labels):
        seen.append(set(labels))
        return fit(method, values, labels)

    folds = np.arange(400) % 5
    crossed = cross_validate(method, values, labels, folds, fitter=spy)
    assert abs(score_of(crossed, labels)) < 0.15
    for fold, training in enumerate(seen):
        assert not training & set(labels[folds == fold])


@pytest.mark.parametrize("method", FITTED)
def test_degenerate_members_and_labels_can_be_fitted(method):
    values, labels = noisy_members([0.2, 0.3], n=40)
    copies = np.stack([values[0], values[0], values[0]])
    constant = np.stack([values[0], np.full(40, 0.5)])
    for members, truth in [(copies, labels), (constant, labels), (values, np.full(40, 0.3)), (values[:1], labels)]:
        combination = fit(method, members, truth)
        assert np.isfinite(combination.weights).all()
        scores = combine(members, combination)
        assert ((scores >= 0) & (scores <= 1)).all()
    all_constant = np.full((2, 40), 0.5)
    assert np.isfinite(combine(all_constant, fit(method, all_constant, labels))).all()


def test_stack_recovers_a_linear_relation_and_shrinks_to_the_mean():
    rng = np.random.default_rng(2)
    values = rng.random((3, 3000))
    labels = 0.2 + 0.5 * values[0] + 0.1 * values[2]
    stack = fit("stack", values, labels)
    np.testing.assert_allclose(stack.weights, np.array([0.5, 0.0, 0.1]) * values.std(axis=1), atol=1e-3)
    np.testing.assert_allclose(combine(values, stack), labels, atol=2e-3)
    noise = fit("stack", values[:, :60], 0.5 + 0.3 * values[:, :60].mean(axis=0) + 0.3 * rng.normal(size=60))
    assert np.ptp(noise.weights) < 0.3


def test_without_member_renormalises():
    smaller = without_member(Combination("weighted", np.array([0.2, 0.3, 0.5])), 2)
    np.testing.assert_allclose(smaller.weights, [0.4, 0.6])
    assert without_member(Combination("weighted", np.array([1.0, 0.0])), 0) is None
    assert without_member(Combination("stack", np.array([1.0, 0.5])), 0) is None
    scaled = Combination("weighted", np.array([0.5, 0.5, 0.0]), Scale(np.arange(3.0), np.arange(1.0, 4.0), 2.0, 0.5))
    smaller = without_member(scaled, 0)
    assert smaller.weights.tolist() == [1.0, 0.0]
    assert smaller.scale.centre.tolist() == [1.0, 2.0]
    assert smaller.scale.width.tolist() == [2.0, 3.0]
    assert without_member(Combination("median"), 0).method == "median"


def test_folds_depend_on_the_id_alone():
    ids = [f"clip_{number}" for number in range(5000)]
    folds = dict(zip(ids, fold_of(id_hashes(ids)), strict=True))
    backwards = dict(zip(ids[::-1], fold_of(id_hashes(ids[::-1])), strict=True))
    assert folds == backwards
    assert fold_of(id_hashes(["clip_7"]))[0] == folds["clip_7"]
    counts = np.bincount(list(folds.values()))
    assert len(counts) == 5
    assert counts.min() > 900
    order = hash_order(id_hashes(ids))
    assert sorted(order) == list(range(5000))
    assert abs(np.corrcoef(rankdata(order), np.arange(5000))[0, 1]) < 0.05
