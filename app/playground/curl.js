/** An operation as a line for a shell. */

/**
 * @param {string} method @param {string} path of the document, its parameters in braces
 * @param {{content: Record<string, any>} | undefined} body
 * @param {any} example a body, where it is JSON
 * @param {boolean} needsKey
 */
export function curl(method, path, body, example, needsKey) {
  const address = location.origin + path.replace(/\{(\w+)\}/g, (_, name) => `$${name.toUpperCase()}`);
  const words = ["curl -sS", method === "get" || (method === "post" && body) ? null : `-X ${method.toUpperCase()}`, `"${address}"`];
  if (needsKey) words.push('-H "Authorization: Bearer $DENOISED_API_KEY"');
  for (const type of Object.keys(body?.content ?? {}).slice(0, 1)) {
    words.push(`-H 'Content-Type: ${type}'`, type === "application/json" ? `-d ${quoted(JSON.stringify(example ?? {}))}` : "--data-binary @picture.png");
  }
  return words.filter(Boolean).join(" ");
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
