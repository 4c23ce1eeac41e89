/**
 * The cards in order. `before` and `after` are one sentence each, `task` is the one thing to do, `formulas` are TeX with
 * an explanation, and `section` is the heading in docs/how-it-works.md. `{pixels}` and the like are filled in from the
 * model's card.
 */

/** @typedef {{id: string, title: string, before: string, task: string, after: string, formulas: [string, string][],
 *             section: string, needsModel: boolean, load: () => Promise<{mount: Function}>}} Card */

/** @type {Card[]} */
export const CARDS = [
  {
    id: "examples", title: "Examples in, more like them out", section: "examples-in-more-like-them-out", needsModel: true,
    before: "A generative model has seen many examples, and makes new pictures that could have been among them.",
    task: "Choose a kind of picture and make eight new ones. Could you tell them from the examples?",
    after: "The network keeps no pictures: it has learned what they have in common, and every start from other noise gives another one.",
    formulas: [["x \\sim p_\\text{data}", "the examples: samples of a distribution that nobody can write down"], ["x \\sim p_\\theta \\approx p_\\text{data}", "what the model makes: samples of a distribution close to it"]],
    load: () => import("./cards/examples.js"),
  },
  {
    id: "points", title: "A picture is a point", section: "a-picture-is-a-point", needsModel: false,
    before: "A picture with two pixels is a point in a plane, and where the examples lie close together, pictures are likely.",
    task: "Choose a shape or draw points of your own. Then move the slider and watch the hills melt.",
    after: "A picture of {size} is a point as well, only with {pixels} coordinates instead of two, and everything here holds there too.",
    formulas: [
      ["p_t(x) = \\frac{1}{N} \\sum_i \\mathcal N(x; \\alpha_t x_i, v_t)", "the density of the noisy points; $v_t$ is the variance of each hill"],
      ["\\nabla \\log p_t(x)", "the score: the arrows, which point uphill"],
    ],
    load: () => import("./cards/points.js"),
  },
  {
    id: "uphill", title: "Walking uphill", section: "walking-uphill", needsModel: false,
    before: "To make a new picture, start anywhere and walk to where pictures are likely.",
    task: "Drop balls, or click where one should start, and let them walk in each of the three ways, with and without noise.",
    after: "Far from all points the hill is flat and its plain gradient is zero, whereas a very noisy hill is so wide that its arrows lead home from everywhere, and the less noisy ones after it add the detail.",
    formulas: [
      ["x' = x + \\delta \\nabla p(x)", "plain gradient: where $p$ is almost 0, so is the step"],
      ["x' = x + \\delta \\nabla \\log p_t(x) + \\sqrt{2 \\delta} z", "Langevin's walk at one level, with fresh noise $z$"],
      ["x_{t-1} = \\alpha_{t-1} \\hat x_0 + \\sigma_{t-1} \\hat\\varepsilon", "many levels: one step of DDIM from each to the next"],
    ],
    load: () => import("./cards/uphill.js"),
  },
  {
    id: "noise", title: "Adding noise", section: "adding-noise", needsModel: true,
    before: "The way from a picture to noise is easy and needs no network: mix in random numbers, more and more of them.",
    task: "Choose a picture, draw one or open a file, and move the slider from the picture to the noise.",
    after: "In the end nothing of the picture is left, and whatever it was, it has become the same thing: plain noise.",
    formulas: [
      ["x_t = \\alpha_t x_0 + \\sigma_t \\varepsilon, \\quad \\varepsilon \\sim \\mathcal N(0, I)", "the forward process"],
      ["\\alpha_t^2 + \\sigma_t^2 = 1", "so that the noisy picture stays as bright"],
      ["\\text{SNR}_t = \\alpha_t^2 / \\sigma_t^2", "signal to noise"],
    ],
    load: () => import("./cards/noise.js"),
  },
  {
    id: "guess", title: "Guess the noise", section: "guess-the-noise", needsModel: true,
    before: "The network learns by playing one game millions of times: here is a noisy picture; which noise is in it?",
    task: "You first: find the noise that was added. Then let the network guess, in a picture that it makes or in one of yours.",
    after: "If you know the noise, you can subtract it, so the network can win only by knowing what pictures look like.",
    formulas: [
      ["\\min_\\theta \\mathbb E \\lVert \\varepsilon - \\hat\\varepsilon_\\theta(x_t, t) \\rVert^2", "the loss: the squared error of the guess"],
      ["\\hat x_0 = \\frac{x_t - \\sigma_t \\hat\\varepsilon}{\\alpha_t}", "the picture that is left when the guess is subtracted"],
    ],
    load: () => import("./cards/guess.js"),
  },
  {
    id: "score", title: "The noise shows the way", section: "the-noise-shows-the-way", needsModel: true,
    before: "Noise leads away from the pictures, so the predicted noise with its sign turned around is the way uphill.",
    task: "Ask about a picture that the network makes or one of yours, and follow the arrows, a part of the way or all of it.",
    after: "These are the arrows of the plane again, one coordinate for each pixel: up means brighter, down means darker.",
    formulas: [
      ["\\nabla \\log p_t(x_t) = -\\frac{\\hat\\varepsilon}{\\sigma_t}", "the score is the predicted noise, turned around and divided by its level"],
      ["x_t + \\sigma_t^2 \\nabla \\log p_t(x_t) = \\alpha_t \\hat x_0", "all of the way leads to the predicted picture (Tweedie's formula)"],
    ],
    load: () => import("./cards/score.js"),
  },
  {
    id: "level", title: "How noisy is it?", section: "how-noisy-is-it", needsModel: false,
    before: "The network gets two things, the noisy picture and its noise level, because the best answer depends on both.",
    task: "Tell the denoiser a wrong level, and compare where it sends the same noisy points.",
    after: "Given too low a level, it takes noise for detail and answers with whatever example is nearest; given too high a level, it throws detail away and answers with the average.",
    formulas: [["\\hat\\varepsilon_\\theta(x_t, t)", "the same network for all levels: $t$ is an input, as sines and cosines"]],
    load: () => import("./cards/level.js"),
  },
  {
    id: "network", title: "Inside the network", section: "inside-the-network", needsModel: true,
    before: "The network is a U-Net: it shrinks the picture level by level, considers it as a whole, and grows it back.",
    task: "Choose a level to see its shape and what it costs.",
    after: "Skip connections pass each level's features across, so that details need not squeeze through the bottom.",
    formulas: [["(C, H, W) \\to (2C, H/2, W/2)", "one level down: more channels, fewer pixels"]],
    load: () => import("./cards/network.js"),
  },
  {
    id: "sampling", title: "From noise to picture", section: "from-noise-to-picture", needsModel: true,
    before: "A sampler takes the walk: it asks the network, moves a little toward the answer, and asks again.",
    task: "Make a film and move through it; then compare numbers of steps, and samplers, from the same noise.",
    after: "From pure noise the answer is a blur, the average of all pictures; each step removes some noise and makes the next answer sharper.",
    formulas: [["x_{t-1} = \\alpha_{t-1} \\hat x_0 + \\sigma_{t-1} \\hat\\varepsilon", "DDIM; other samplers add noise or remember earlier answers"]],
    load: () => import("./cards/sampling.js"),
  },
  {
    id: "guidance", title: "Steering", section: "steering", needsModel: true,
    before: "Asked with and without a subject, the network gives two answers, and their difference is what the subject adds.",
    task: "Move the slider to go further in that direction, then make the whole strip.",
    after: "More guidance gives clearer examples and less variety, and what a picture shows is decided early, while it is still mostly noise.",
    formulas: [["\\hat\\varepsilon = \\hat\\varepsilon_\\text{without} + s (\\hat\\varepsilon_\\text{with} - \\hat\\varepsilon_\\text{without})", "classifier-free guidance; $s = 1$ turns it off"]],
    load: () => import("./cards/guidance.js"),
  },
  {
    id: "server", title: "What the server does", section: "what-the-server-does", needsModel: true,
    before: "Each evaluation of the network covers all pictures in progress, of all requests, each at its own step.",
    task: "Make one picture alone, then again in a crowd, and compare the bytes.",
    after: "Nobody waits for a batch to fill or for a longer job to end, and yet a picture is the same, byte by byte, alone and in the crowd.",
    formulas: [["(\\text{registers})' = M \\cdot (\\text{registers}, \\hat x_0, \\hat\\varepsilon, z)", "each picture has its own row of its own sampler's table"]],
    load: () => import("./cards/server.js"),
  },
];
