/** A job's request as a curl command and as a Python program. */

const MAX_NAME = 60; // characters of a file name

/** The request that makes a job's pictures again. @param {any} job @param {string[]} fields names of request fields */
export function requestOf(job, fields) {
  return Object.fromEntries(fields.filter((name) => name === "label" || isGiven(job[name])).map((name) => [name, job[name]]));
}

/** Whether a field has a value: neither null nor an empty list. */
const isGiven = (value) => (Array.isArray(value) ? value.length > 0 : (value ?? null) !== null);

/** A file name for picture `image` of a job. */
export function fileName(job, image, format = job.format) {
  const label = (job.label ?? job.prompt ?? job.model).slice(0, MAX_NAME).toLowerCase().replaceAll(/[^a-z0-9]+/g, "-").replaceAll(/^-|-$/g, "") || "picture";
  return `${label}-${job.seed + image}.${format === "jpeg" ? "jpg" : format}`;
}

/** @param {any} job @param {string[]} fields @param {string} server its URL @param {boolean} needsKey whether it needs an API key */
export function curl(job, fields, server, needsKey) {
  const single = job.n === 1;
  const lines = [
    `curl -sS ${server}/generate`,
    "-H 'Content-Type: application/json'",
    single ? `-H 'Accept: image/${job.format}'` : "-H 'Prefer: wait=60'",
    needsKey ? '-H "Authorization: Bearer $DENOISED_API_KEY"' : null,
    `-d '${JSON.stringify(requestOf(job, fields)).replaceAll("'", "'\\''")}'`,
    single ? `-o ${fileName(job, 0)}` : null,
  ];
  return lines.filter(Boolean).join(" \\\n  ");
}

export function python(job, fields, server, needsKey) {
  const headers = needsKey ? `{"Prefer": "wait=60", "Authorization": f"Bearer {os.environ['DENOISED_API_KEY']}"}` : '{"Prefer": "wait=60"}';
  return `${needsKey ? "import os\n\n" : ""}import httpx

client = httpx.Client(base_url=${JSON.stringify(server)}, headers=${headers}, timeout=90)
request = ${pythonDict(requestOf(job, fields))}
job = client.post("/generate", json=request).raise_for_status().json()
for image in job["images"]:
    with open(f"${fileName(job, 0).replace(/-\d+\.\w+$/, "")}-{image['seed']}.{image['format']}", "wb") as file:
        file.write(client.get(image["url"]).content)
`;
}

/** A request as a Python dictionary. */
function pythonDict(value) {
  const fields = Object.entries(value).map(([name, each]) => {
    const text = each === null ? "None" : each === true ? "True" : each === false ? "False" : JSON.stringify(each);
    return `    ${JSON.stringify(name)}: ${text},`;
  });
  return `{\n${fields.join("\n")}\n}`;
}
