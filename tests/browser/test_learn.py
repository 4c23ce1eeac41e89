"""The course at /learn in a real browser: each action has its effect, and the mathematics is the model's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from playwright.sync_api import Locator, Page, expect
from torch import Tensor

from denoised.model.diffusion.grids import Grid
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import advance
from denoised.model.diffusion.predictions import Estimate, score_from_epsilon, x0_from_epsilon
from denoised.model.diffusion.samplers import compile_plan
from tests.browser.test_playground import overflow, until, violations

pytestmark = pytest.mark.browser

Open = Callable[..., Page]

SCHEDULE = NoiseSchedule.from_name("squaredcos_cap_v2")
SPREAD = 0.06
STEPS = 20
CARDS = [
    "examples", "points", "uphill", "noise", "guess", "score", "level", "network", "sampling", "guidance", "server",
]  # fmt: skip
PLACES = [(0.0, 0.0, 10), (1.0, -1.0, 300), (2.0, 2.0, 700), (-1.5, 0.4, 999), (0.3, 0.31, 0)]  # x, y, t
STARTS = [(1.2, -0.3), (-0.4, 2.0), (0.0, 0.1)]

# What the page computes: the mixture at PLACES, whole walks from STARTS, and normal numbers of two seeds.
COMPUTE = """async ([places, starts, spread, steps]) => {
  const load = (name) => import(`/playground/learn/math/${name}.js`);
  const [mixtures, shapes, schedules, walks, randoms] =
    await Promise.all(["mixture", "shapes", "schedule", "walks", "random"].map(load));
  const mixture = new mixtures.Mixture(shapes.moons(), spread);
  const at = places.map(([x, y, t]) => mixture.at(x, y, schedules.COSINE[t]));
  const levels = schedules.trailingLevels(steps);
  return {
    means: mixture.means, at,
    walks: starts.map((start) => walks.ddim(mixture, start, levels)),
    normals: [[7, 784], [4294967295, 35]].map(([seed, count]) => [...randoms.torchNormals(seed, count)]),
  };
}"""


def card(open_page: Open, service: Any, name: str, **options: Any) -> Page:
    page = open_page(f"{service.url}/learn#{name}", **options)
    expect(page.locator("#stage")).to_have_attribute("data-card", name)
    return page


def drawn(canvas: Locator) -> str:
    return str(canvas.evaluate("canvas => canvas.toDataURL()"))


# Whether a canvas of this name has a pixel that is not transparent.
DRAWN = """name => {
  const canvas = document.querySelector(`[aria-label="${name}"]`);
  const { width, height } = canvas;
  return canvas.getContext("2d").getImageData(0, 0, width, height).data.some((each, i) => i % 4 === 3 && each > 0);
}"""


def slide(page: Page, label: str, key: str) -> None:
    page.get_by_label(label, exact=True).press(key)


def done(page: Page) -> None:
    """The card counts as done, in the list and after a reload."""
    expect(page.locator("#list li:has([aria-current]).done")).to_have_count(1)


def _log_density(x: Tensor, means: Tensor, alpha: float, sigma: float) -> Tensor:
    """log p_t(x) of a mixture of equal Gaussians; x: (2,), means: (K, 2)."""
    variance = alpha**2 * SPREAD**2 + sigma**2
    logs = -((x - alpha * means) ** 2).sum(1) / (2 * variance)
    return torch.logsumexp(logs, 0) - math.log(2 * math.pi * variance * len(means))


def _score(x: Tensor, means: Tensor, alpha: float, sigma: float) -> Tensor:
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(_log_density(x, means, alpha, sigma), x)
    return gradient


def test_the_mathematics_of_the_page_is_that_of_the_model(open_page: Open, service: Any) -> None:
    """The density, x̂_0, ε̂ and the score of a mixture, whole runs of DDIM, and torch's normal numbers."""
    page = open_page(f"{service.url}/learn")
    got = json.loads(json.dumps(page.evaluate(COMPUTE, [PLACES, STARTS, SPREAD, STEPS])))
    means = torch.tensor(got["means"], dtype=torch.float64)
    for (x, y, t), said in zip(PLACES, got["at"], strict=True):
        alpha, sigma = float(SCHEDULE.alpha[t]), float(SCHEDULE.sigma[t])
        x_t = torch.tensor([x, y], dtype=torch.float64)
        score = _score(x_t, means, alpha, sigma)
        epsilon = torch.tensor(said["epsilon"], dtype=torch.float64)
        level = (torch.tensor([alpha], dtype=torch.float64), torch.tensor([sigma], dtype=torch.float64))
        x0 = x0_from_epsilon(x_t.view(1, 2, 1, 1), epsilon.view(1, 2, 1, 1), *level).flatten()
        assert said["logDensity"] == pytest.approx(float(_log_density(x_t, means, alpha, sigma)), abs=1e-9)
        assert said["score"] == pytest.approx(score.tolist(), rel=1e-4, abs=1e-4)
        assert score_from_epsilon(epsilon.view(1, 2, 1, 1), level[1]).flatten().tolist() == pytest.approx(
            said["score"], rel=1e-9
        )
        assert said["denoised"] == pytest.approx(x0.tolist(), abs=1e-4)
    plan = compile_plan("ddim", SCHEDULE, STEPS, Grid("trailing"))
    for start, end in zip(STARTS, got["walks"], strict=True):
        registers = torch.tensor(start, dtype=torch.float64).view(1, 1, 2, 1, 1)
        for row in range(plan.evaluations):
            x, alpha, sigma = registers[:, 0], float(plan.alpha[row]), float(plan.sigma[row])
            epsilon = -sigma * _score(x.flatten(), means, alpha, sigma).view_as(x)
            matrices = torch.from_numpy(plan.matrices[row])[None]
            registers = advance(
                registers, Estimate((x - sigma * epsilon) / alpha, epsilon), torch.zeros_like(x), matrices
            )
        assert end == pytest.approx(registers.flatten().tolist(), abs=1e-4)
    for seed, numbers in zip((7, 4294967295), got["normals"], strict=True):
        wanted = torch.randn(len(numbers), generator=torch.Generator().manual_seed(seed))
        assert numbers == pytest.approx(wanted.tolist(), abs=1e-5)


def test_a_visitor_reads_the_cards_in_order_by_link_and_by_keyboard(open_page: Open, service: Any) -> None:
    page = open_page(service.url)
    page.get_by_role("link", name="How it works", exact=True).click()
    expect(page.locator("#card-title")).to_have_text("Examples in, more like them out")
    expect(page.locator("#list a")).to_have_count(len(CARDS))
    assert [str(link.get_attribute("href")) for link in page.locator("#list a").all()] == [f"#{name}" for name in CARDS]
    page.get_by_role("button", name="Next: A picture is a point").press("Enter")
    expect(page.locator("#card-title")).to_have_text("A picture is a point")
    expect(page.locator("#card")).to_be_focused()
    expect(page.locator("#live")).to_have_text("2 of 11: A picture is a point")
    plane = page.locator("canvas.plane")
    before = drawn(plane)
    slide(page, "Noise level", "End")
    until(page, "before => document.querySelector('canvas.plane').toDataURL() !== before", before)
    expect(page.locator(".says")).to_contain_text("One wide hill")
    plane.press("ArrowUp")
    plane.press("Enter")  # a point of one's own at the cross
    expect(page.get_by_role("radio", name="My own")).to_be_checked()
    done(page)
    page.goto(f"{service.url}/learn")  # without a fragment: where the visitor was
    expect(page.locator("#card-title")).to_have_text("A picture is a point")
    done(page)
    page.get_by_role("link", name="Read on").click()
    expect(page.locator("#a-picture-is-a-point")).to_be_in_viewport()
    assert page.locator("math").count() > 20


@pytest.mark.slow
def test_walks_reach_the_points_through_many_levels_and_hardly_move_along_the_plain_gradient(
    open_page: Open, service: Any
) -> None:
    page = card(open_page, service, "uphill", reduced_motion="reduce")
    drop = page.get_by_role("button", name="Drop 40 balls")
    drop.click()
    expect(page.locator(".says")).to_contain_text("they hardly moved")
    for noise in ("without", "with"):
        page.get_by_role("radio", name="score, many levels").check()
        page.get_by_role("radio", name=noise, exact=True).check()
        drop.click()
        expect(page.locator(".says")).to_contain_text("They came home")
        found = re.match(r"(\d+) of 40", page.locator(".says").inner_text())
        assert found is not None
        assert int(found[1]) > 36
    done(page)


def test_the_network_predicts_the_noise_and_its_opposite_leads_to_the_picture(open_page: Open, service: Any) -> None:
    page = card(open_page, service, "score")
    page.get_by_role("button", name="Ask the network").click()
    expect(page.get_by_label("How far to follow the arrows")).to_be_enabled()
    moved = page.get_by_label("The picture on its way")
    start = drawn(moved)
    slide(page, "How far to follow the arrows", "End")
    expect(page.locator(".says")).to_contain_text("You are at the predicted picture")
    assert drawn(moved) != start
    heat = page.get_by_label("Heat map", exact=True)
    noise = drawn(heat)
    page.get_by_role("radio", name="score −ε̂/σ").check()
    assert drawn(heat) != noise
    done(page)


# The network's answers about one picture at two levels, and the noise that was added, in torch's order of values.
ASK = """async () => {
  const load = (path) => import(`/playground/${path}.js`);
  const [{ Network }, { json }, { picture, combined }] =
    await Promise.all(["learn/parts/network", "shared/api", "learn/parts/pictures"].map(load));
  const card = (await json("/models")).find((each) => each.name === "fashion-mnist");
  const network = new Network(card, { needsKey: false });
  const source = picture(28, 28, 1, Float32Array.from({ length: 784 }, (_, i) => Math.sin(i)));
  const asked = await network.noised(source, 7, 2, { signal: new AbortController().signal });
  return asked.predictions.map(({ t, alpha, sigma, xt, epsilon, x0 }) => {
    const noise = combined((x, clean) => (x - alpha * clean) / sigma, xt, asked.picture);
    const rest = combined((x, d, e) => x - alpha * d - sigma * e, xt, x0, epsilon);
    return { t, noise: [...noise.data], rest: Math.max(...rest.data.map(Math.abs)) };
  });
}"""


@pytest.mark.slow
def test_the_network_is_asked_about_a_picture_of_the_visitor(open_page: Open, service: Any) -> None:
    page = card(open_page, service, "guess")
    torchs = torch.randn(784, generator=torch.Generator().manual_seed(7))
    for said, t in zip(page.evaluate(ASK), (749, 250), strict=True):
        assert said["t"] == t
        assert said["noise"] == pytest.approx(torchs.tolist(), abs=1e-4), "the server adds the noise of the seed"
        assert said["rest"] < 1e-5, "x_t = α·x̂_0 + σ·ε̂"
    page.get_by_role("radio", name="a picture of yours").check(force=True)
    page.get_by_role("button", name="Example: sneaker").click()
    page.get_by_role("button", name="Let the network guess").click()
    expect(page.get_by_text(re.compile(r"Mean squared error 0\.0"))).to_be_visible()
    expect(page.get_by_text("added to your picture, as in training")).to_be_visible()
    assert drawn(page.get_by_label("Its guess")) != drawn(page.get_by_label("The noise that is there"))
    done(page)

    page = card(open_page, service, "level")
    page.get_by_role("button", name="Draw").click()
    pad = page.get_by_label("Draw here")
    pad.click()
    page.get_by_role("button", name="Ask twice").click()
    expect(page.get_by_text("the network leaves noise in the picture")).to_be_visible()
    right, wrong = (float(each.rsplit(" ", 1)[1]) for each in page.get_by_text("off by").all_inner_texts()[-2:])
    assert right < wrong / 2
    done(page)


@pytest.mark.slow
def test_the_same_bytes_are_made_alone_and_in_the_crowd(open_page: Open, service: Any) -> None:
    page = card(open_page, service, "server")
    page.get_by_role("button", name="Make it twice").click()
    expect(page.locator(".says")).to_contain_text("The same bytes")
    alone, among = page.locator(".bytes code").all_inner_texts()
    assert alone == among
    assert page.locator(".lane").count() == 6
    done(page)


@pytest.mark.slow
def test_every_other_card_does_what_it_says(open_page: Open, service: Any) -> None:
    page = card(open_page, service, "examples")
    made = page.get_by_label("Made 8", exact=True)
    empty = drawn(made)
    page.get_by_role("button", name="Make 8 new ones").click()
    expect(page.locator(".says")).to_contain_text("Made 8 in")
    assert drawn(made) != empty

    page = card(open_page, service, "noise")
    page.get_by_role("button", name="Example: sneaker").click()
    slide(page, "From picture to noise", "Home")
    expect(page.get_by_text("xₜ = 1.00·x₀ + 0.01·ε")).to_be_visible()
    almost_clean = drawn(page.get_by_label("The noisy picture"))
    slide(page, "From picture to noise", "End")
    expect(page.locator(".slider output")).to_contain_text("α = 0.00, σ = 1.00")
    assert drawn(page.get_by_label("The noisy picture")) != almost_clean
    done(page)

    page = card(open_page, service, "guess")
    for k in range(4):
        page.get_by_role("button", name=f"Noise {k + 1}").click()
    expect(page.locator(".guess[data-kind=good]")).to_have_count(1)
    expect(page.locator(".guess[data-kind=bad]")).to_have_count(3)
    page.get_by_role("button", name="Let the network guess").click()
    expect(page.get_by_text(re.compile(r"Mean squared error 0\.0"))).to_be_visible()
    done(page)

    page = card(open_page, service, "level")
    right = page.get_by_text("asked with the right level").inner_text()
    slide(page, "Level given to the network", "End")
    expect(page.locator(".says").first).to_contain_text("Given too much noise")
    wrong = page.locator("figcaption").nth(1).inner_text()
    assert float(wrong.rsplit(" ", 1)[1]) > float(right.rsplit(" ", 1)[1])
    done(page)

    page = card(open_page, service, "network")
    page.locator(".level").last.click()
    expect(page.locator(".says")).to_contain_text("128 channels of 7×7 values, 2.08 M parameters")
    done(page)

    page = card(open_page, service, "sampling")
    page.get_by_role("button", name="Make the film").click()
    expect(page.locator(".slider output")).to_have_text(re.compile(r"^xₜ, σ = 0\.\d\d, t = \d+$"))
    for view, button in (("1, 2, 5, 20 steps", "Make all four"), ("Three samplers", "Make all three")):
        page.get_by_role("radio", name=view).check()
        page.get_by_role("button", name=button).click()
        expect(page.get_by_text("compared with this")).to_be_visible()
        assert page.get_by_text(re.compile(r"differs by [1-9]")).count() > 0
    done(page)

    page = card(open_page, service, "sampling")
    page.get_by_role("button", name="The same from a prompt, with emoji").click()
    page.get_by_label("Prompt").fill("goat, flat style, on a teal background")
    page.get_by_role("button", name="Make the film").click()
    expect(page.locator(".says")).to_contain_text("“goat, flat style, on a teal background”. Move the slider")
    expect(page.locator(".slider output")).to_have_text(re.compile(r"^xₜ, σ = 0\.\d\d, t = \d+$"))
    assert len({drawn(canvas) for canvas in page.locator("#stage canvas").all()}) == 3

    page = card(open_page, service, "guidance")
    page.get_by_role("button", name="Ask twice").click()
    expect(page.get_by_label("Guidance s")).to_be_enabled()
    slide(page, "Guidance s", "Home")
    assert drawn(page.get_by_label("Guided", exact=True)) == drawn(page.get_by_label("Without the subject"))
    page.get_by_role("button", name="Make the strip").click()
    expect(page.locator(".says")).to_contain_text("From left to right")
    page.get_by_role("radio", name="When is it decided?").check()
    slide(page, "Change the subject after step", "End")
    expect(page.locator(".says")).to_contain_text("60 of 60 end in the upper one")
    slide(page, "Change the subject after step", "Home")
    expect(page.locator(".says")).to_contain_text("0 of 60 end in the upper one")


def check_cards(page: Page, names: list[str]) -> None:
    for name in names:
        page.evaluate("name => { location.hash = name; }", name)
        expect(page.locator("#stage")).to_have_attribute("data-card", name)
        expect(page.locator("#stage > *").first).to_be_attached()
        assert violations(page) == [], name
        page.set_viewport_size({"width": 360, "height": 740})
        assert overflow(page) <= 0, name
        page.set_viewport_size({"width": 1280, "height": 900})


@pytest.mark.slow
def test_axe_finds_nothing_serious_on_a_card(open_page: Open, service: Any) -> None:
    check_cards(card(open_page, service, "points", reduced_motion="reduce"), ["points", "guess"])


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_any_card(scheme: str, open_page: Open, service: Any) -> None:
    page = card(open_page, service, "points", color_scheme=scheme, reduced_motion="reduce")
    check_cards(page, CARDS)
    page.goto(f"{service.url}/playground/reading.html")
    expect(page.locator("math").first).to_be_attached()
    assert violations(page) == []


@pytest.mark.slow
def test_a_text_model_shows_its_training_pictures_and_its_network_on_latents(open_page: Open, service: Any) -> None:
    page = card(open_page, service, "examples")
    page.set_default_timeout(60_000)
    page.get_by_label("Model", exact=True).select_option("emoji")
    page.get_by_role("radio", name=re.compile("^rocket")).check(force=True)
    first = page.get_by_label("Example 1", exact=True)
    until(page, DRAWN, "Example 1")
    before = drawn(first)
    page.get_by_role("radio", name=re.compile("^hot dog")).check(force=True)
    until(page, "before => document.querySelector('#stage canvas').toDataURL() !== before", before)
    page.evaluate("location.hash = 'network'")
    expect(page.locator("#stage")).to_contain_text("In: noisy latents of 4×16×16, the prompt, and t.")
    page.locator(".level").last.click()
    expect(page.locator(".says")).to_contain_text("The bottom: 224 channels of 4×4 values")


@pytest.mark.parametrize("name", ["guess", pytest.param("score", marks=pytest.mark.slow)])
def test_a_card_that_cannot_show_a_model_offers_one_that_it_can(name: str, open_page: Open, service: Any) -> None:
    with service.client() as client:
        latent = [each["name"] for each in client.get("/models").json() if each["latent"]]
    if not latent:
        pytest.skip("no bundled model has latents")
    page = card(open_page, service, name)
    page.get_by_label("Model", exact=True).select_option(latent[0])
    page.get_by_role("button", name=re.compile("Show it with")).click()
    expect(page.locator("#stage .waiting")).to_have_count(0)
    expect(page.get_by_label("Model", exact=True)).not_to_have_value(latent[0])
