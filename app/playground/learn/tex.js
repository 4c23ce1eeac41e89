/** A small part of TeX as MathML: what docs/how-it-works.md and the cards write. */

const MATHML = "http://www.w3.org/1998/Math/MathML";
const LETTERS = {
  alpha: "α", beta: "β", delta: "δ", eta: "η", theta: "θ", sigma: "σ", varepsilon: "ε", epsilon: "ε", mu: "μ", rho: "ρ", nabla: "∇", ell: "ℓ",
  log: "log", min: "min", exp: "exp",
};
const OPERATORS = {
  cdot: "·", dots: "…", sim: "∼", to: "→", in: "∈", approx: "≈", le: "≤", ge: "≥", times: "×", mid: "|", sum: "∑", propto: "∝", lVert: "‖", rVert: "‖", pm: "±", infty: "∞",
};
const SPACES = { quad: "1em", qquad: "2em", ",": "0.17em", ";": "0.28em", " ": "0.25em" };
const BOARD = { E: "𝔼", R: "ℝ" };
const SCRIPT = { N: "𝒩" };

const node = (tag, ...children) => {
  const element = document.createElementNS(MATHML, tag);
  element.append(...children);
  return element;
};

/** A formula. @param {string} source TeX @param {{display?: boolean}} [options] display: in a line of its own */
export function math(source, { display = false } = {}) {
  const tokens = source.match(/\\[a-zA-Z]+|\\.|[{}_^]|\d+(?:\.\d+)?|\.\d+|\S/g) ?? [];
  const element = node("math", ...sequence(tokens));
  if (display) element.setAttribute("display", "block");
  return element;
}

/** Nodes up to a closing brace or the end. */
function sequence(tokens) {
  const nodes = [];
  while (tokens.length && tokens[0] !== "}") nodes.push(scripted(tokens));
  tokens.shift();
  return nodes;
}

/** An atom with what is below and above it. */
function scripted(tokens) {
  const base = atom(tokens);
  const scripts = {};
  while (tokens[0] === "_" || tokens[0] === "^") scripts[tokens.shift()] = atom(tokens);
  const { _: below, "^": above } = scripts;
  if (below && base.textContent === "min") return node("munder", base, below);
  if (below && above) return node("msubsup", base, below, above);
  return below ? node("msub", base, below) : above ? node("msup", base, above) : base;
}

function atom(tokens) {
  const token = tokens.shift() ?? "";
  if (token === "{") return node("mrow", ...sequence(tokens));
  if (!token.startsWith("\\")) return /[\d.]/.test(token) ? node("mn", token) : /[a-zA-Zα-ωΑ-Ω]/.test(token) ? node("mi", token) : operator(token);
  const name = token.slice(1);
  if (name === "frac") return node("mfrac", atom(tokens), atom(tokens));
  if (name === "sqrt") return node("msqrt", atom(tokens));
  if (name === "hat" || name === "bar") return accent(atom(tokens), name === "hat" ? "^" : "¯");
  if (name === "text") return node("mtext", words(tokens));
  if (name === "mathbb" || name === "mathcal") return node("mi", (name === "mathbb" ? BOARD : SCRIPT)[atom(tokens).textContent ?? ""] ?? "");
  if (name in SPACES) return space(SPACES[name]);
  return name in LETTERS ? node("mi", LETTERS[name]) : operator(OPERATORS[name] ?? name);
}

function operator(text) {
  const element = node("mo", text === "-" ? "−" : text === "'" ? "′" : text);
  if ("‖|·()".includes(text)) element.setAttribute("stretchy", "false");
  return element;
}

function accent(base, mark) {
  const element = node("mover", base, operator(mark));
  element.setAttribute("accent", "true");
  return element;
}

function space(width) {
  const element = node("mspace");
  element.setAttribute("width", width);
  return element;
}

/** The words of \text{…}. */
function words(tokens) {
  const inside = [];
  tokens.shift();
  while (tokens.length && tokens[0] !== "}") inside.push(tokens.shift());
  tokens.shift();
  return inside.join("");
}
