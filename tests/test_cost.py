"""The step-time model: on laws drawn at random it predicts steps that it has not seen."""

import json

import numpy as np
import pytest

from feather.cost import PRICES, Load, StepCost


def drawn_law(rng) -> np.ndarray:
    """Prices, seconds; about a third of them are 0."""
    scale = np.array([5e-3, 1e-3, 1e-4, 3e-4, 5e-5, 0.0, 2e-3, 1e-5, 5e-5, 0.0, 2e-5])
    law = scale * rng.exponential(size=len(scale)) * (rng.random(len(scale)) < 0.7)
    law[0] += 1e-3
    law[5], law[9] = 0.8 * law[2], 0.8 * law[8]
    return law


def drawn_load(rng, pure: bool) -> Load:
    """Groups of rows on prefixes of 16 chunks, each with 1 of its own, that have run for up to 48 steps."""
    sizes = rng.multinomial(rng.integers(2, 33), np.ones(1 if pure else 8) / (1 if pure else 8))
    n, groups = int(sizes.sum()), int((sizes > 0).sum())
    return Load(n, 17 * n, 16 * groups + n, 16 * float((sizes**2).sum()) + n, 16 if groups == 1 else 0, n * int(rng.integers(0, 49)))


def seconds(law, load: Load, prefill: int = 0) -> float:
    n, mixed = load.rows, prefill > 0
    x = [
        1,
        n,
        load.chunks,
        load.distinct,
        load.loads - load.distinct,
        -(n - 1) * load.tip,
        mixed,
        prefill,
        mixed * load.chunks,
        -mixed * (n - 1) * load.tip,
        load.decoded,
    ]
    return float(law @ x)


@pytest.mark.parametrize("seed", range(6))
def test_predicts_steps_of_a_drawn_law(seed):
    rng = np.random.default_rng(seed)
    law, model = drawn_law(rng), StepCost()
    for step in range(400):
        load, prefill = drawn_load(rng, pure=step % 20 < 3), int(rng.random() < 0.4) * 20
        hiccup = 5.0 if rng.random() < 0.02 else 1.0
        model.observe(load, seconds(law, load, prefill) * np.exp(0.03 * rng.normal()) * hiccup, prefill)
    held_out = [(drawn_load(rng, pure), prefill) for pure in (True, False) for prefill in (0, 20) for _ in range(50)]
    errors = [abs(model.seconds(load, prefill) / seconds(law, load, prefill) - 1) for load, prefill in held_out]
    assert np.mean(errors) < 0.04 and min(model.prices.values()) >= 0


def test_a_changed_law_is_followed():
    rng = np.random.default_rng(1)
    model, laws = StepCost(), (drawn_law(rng), 4 * drawn_law(rng))
    for law in laws:
        for step in range(200):
            load = drawn_load(rng, pure=step % 10 == 0)
            model.observe(load, seconds(law, load) * np.exp(0.03 * rng.normal()))
    load = drawn_load(rng, pure=False)
    assert model.changes >= 1 and abs(model.seconds(load) / seconds(laws[1], load) - 1) < 0.1


def test_noise_is_no_change():
    rng = np.random.default_rng(2)
    model, law = StepCost(), drawn_law(rng)
    for _ in range(2000):
        load = drawn_load(rng, pure=False)
        model.observe(load, seconds(law, load) * np.exp(0.1 * rng.normal()))
    assert model.changes == 0 and 0.05 < model.noise < 0.15


def test_impossible_results_teach_nothing():
    model = StepCost()
    for load, taken in ((Load(), 1.0), (Load(1, 1, 1, 1, 1), 0.0), (Load(1, 1, 1, 1, 1), float("nan")), (Load(1, 1, 1, 1, 1), -1.0)):
        model.observe(load, taken)
    assert model.steps == 0 and model.seconds(Load()) == 0


def test_what_is_learned_survives_json():
    rng = np.random.default_rng(3)
    model, law = StepCost(), drawn_law(rng)
    for _ in range(50):
        load = drawn_load(rng, pure=False)
        model.observe(load, seconds(law, load))
    again = StepCost()
    again.restore(json.loads(json.dumps(model.learned())))
    assert again.prices == model.prices and tuple(again.prices) == PRICES
    with pytest.raises(ValueError, match="prices"):
        again.restore(model.learned() | {"prices": [1.0]})


def test_an_amount_that_has_not_been_seen_for_days_is_as_one_never_seen():
    cost = StepCost()
    for rows in range(1, 101):
        cost.observe(Load(rows, 16 * rows, 16, 16 * rows**2, 16), 0.01 + 0.001 * rows)
    cost._information[5] = cost._information[:, 5] = 0.0
    cost._information[5, 5], cost._moment[5] = 5e-309, 1e-300
    for rows in range(1, 41):
        cost.observe(Load(rows, 16 * rows, 16 * rows, 16 * rows, 0), 0.01 + 0.001 * rows)
        assert cost.seconds(Load(10, 160, 160, 160, 0)) > 0.005
