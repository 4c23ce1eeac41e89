"""What each sampler is good for, in plain words: for people who choose one (`GET /models`, docs/api.md)."""

from __future__ import annotations

DESCRIPTIONS = {
    "ddpm": "The original method. Adds fresh noise in every step and needs hundreds of steps.",
    "ddim": "Simple and predictable. No fresh noise unless eta is over 0. 25 to 50 steps.",
    "euler": "The simplest solver. Also for turbo models, in 1 to 4 steps with trailing spacing.",
    "euler_a": "Euler with fresh noise in every step. More steps keep changing the picture.",
    "heun": "Euler with a correction. More exact, at two evaluations per step.",
    "dpm_2": "A solver of second order, at two evaluations per step.",
    "dpmpp_2m": "Fast and exact, a good first choice. 15 to 30 steps.",
    "dpmpp_2m_sde": "DPM-Solver++ with fresh noise. More detail, 20 to 40 steps.",
    "dpmpp_3m": "DPM-Solver++ of third order. 15 to 30 steps without strong guidance.",
    "dpmpp_sde": "DPM-Solver++ with fresh noise, at two evaluations per step. Good detail from 10 steps on.",
    "lms": "A linear solver that remembers four steps. Exact with many steps, unstable with few.",
    "plms": "The sampler of the first Stable Diffusion models. 50 steps and one more evaluation.",
    "unipc": "Predicts and corrects with one evaluation per step. Good with 8 to 20 steps.",
    "unipc_3": "Third-order UniPC. Good with 6 to 20 steps.",
    "langevin": "Follows the score with small noisy moves. For studies; needs a hundred steps and more.",
    "pc": "Predictor and corrector of score models, at two evaluations per step. Needs many steps.",
    "lcm": "For latent consistency models and their adapters only, in 1 to 8 steps.",
    "tcd": "For models of trajectory consistency distillation only, in 1 to 8 steps. eta sets the fresh noise.",
    "consistency": "For models of denoised tune-consistency only, and their only sampler. 1 or 2 steps.",
}
