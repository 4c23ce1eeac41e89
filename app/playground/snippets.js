/** A job's request for the shell and for Python. */

const FIELDS = ["model", "label", "n", "seed", "sampler", "steps", "eta", "guidance_scale", "guidance_rescale", "spacing", "karras", "format"];

/** The request that makes a job's pictures again. */
export function requestOf(job) {
  return Object.fromEntries(FIELDS.filter((name) => name === "label" || (job[name] ?? null) !== null).map((name) => [name, job[name]]));
}

/** A file name for picture `image` of a job. */
export function fileName(job, image, format = job.format) {
  const label = (job.label ?? job.model).toLowerCase().replaceAll(/[^a-z0-9]+/g, "-").replaceAll(/^-|-$/g, "") || "picture";
  return `${label}-${job.seed + image}.${format === "jpeg" ? "jpg" : format}`;
}

/** @param {string} server its address @param {boolean} keys whether it wants a key */
export function curl(job, server, keys) {
  const one = job.n === 1;
  const lines = [
    `curl -sS ${server}/generate`,
    "-H 'Content-Type: application/json'",
    one ? `-H 'Accept: image/${job.format}'` : "-H 'Prefer: wait=60'",
    keys ? '-H "Authorization: Bearer $DENOISED_API_KEY"' : null,
    `-d '${JSON.stringify(requestOf(job)).replaceAll("'", "'\\''")}'`,
    one ? `-o ${fileName(job, 0)}` : null,
  ];
  return lines.filter(Boolean).join(" \\\n  ");
}

export function python(job, server, keys) {
  const headers = keys ? `{"Prefer": "wait=60", "Authorization": f"Bearer {os.environ['DENOISED_API_KEY']}"}` : '{"Prefer": "wait=60"}';
  return `${keys ? "import os\n\n" : ""}import httpx

client = httpx.Client(base_url=${JSON.stringify(server)}, headers=${headers}, timeout=90)
request = ${literal(requestOf(job))}
job = client.post("/generate", json=request).raise_for_status().json()
for image in job["images"]:
    with open(f"${fileName(job, 0).replace(/-\d+\.\w+$/, "")}-{image['seed']}.{image['format']}", "wb") as file:
        file.write(client.get(image["url"]).content)
`;
}

/** JSON as Python writes it. */
function literal(value) {
  const fields = Object.entries(value).map(([name, each]) => {
    const text = each === null ? "None" : each === true ? "True" : each === false ? "False" : JSON.stringify(each);
    return `    ${JSON.stringify(name)}: ${text},`;
  });
  return `{\n${fields.join("\n")}\n}`;
}
