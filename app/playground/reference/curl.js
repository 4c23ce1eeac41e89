/** An operation as a curl command. */

/**
 * @param {string} method @param {string} path as in the OpenAPI document, with parameters in braces
 * @param {{content: Record<string, any>} | undefined} body
 * @param {any} example a body, if the operation takes JSON
 * @param {boolean} needsKey
 */
export function curl(method, path, body, example, needsKey) {
  const url = location.origin + path.replace(/\{(\w+)\}/g, (_, name) => `$${name.toUpperCase()}`);
  const parts = ["curl -sS", method === "get" || (method === "post" && body) ? null : `-X ${method.toUpperCase()}`, `"${url}"`];
  if (needsKey) parts.push('-H "Authorization: Bearer $DENOISED_API_KEY"');
  for (const type of Object.keys(body?.content ?? {}).slice(0, 1)) {
    parts.push(`-H 'Content-Type: ${type}'`, type === "application/json" ? `-d ${shellQuoted(JSON.stringify(example ?? {}))}` : "--data-binary @picture.png");
  }
  return parts.filter(Boolean).join(" ");
}

const shellQuoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
