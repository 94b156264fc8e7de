// The request that the page has sent, as commands to copy.

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** For a shell; earlier turns are in history.json. */
export function curl({ url, file, fields, withKey }) {
  const { history, ...texts } = fields;
  return [
    `curl --no-buffer ${quoted(url)}`,
    ...(withKey ? ['-H "Authorization: Bearer $BLSP_KEY"'] : []),
    `-F ${quoted(`file=@"${file.replaceAll(/["\\]/g, "\\$&")}"`)}`,
    ...Object.entries({ ...texts, stream: "true" }).map(([name, value]) => `--form-string ${quoted(`${name}=${value}`)}`),
    ...(history ? ["-F 'history=<history.json'"] : []),
  ].join(" \\\n  ");
}

/** For Python with httpx. */
export function python({ url, file, fields, withKey }) {
  const { history, ...texts } = fields;
  const data = Object.entries({ ...texts, stream: "true" });
  return [
    "import json",
    ...(withKey ? ["import os"] : []),
    "",
    "import httpx",
    "",
    "data = {",
    ...data.map(([name, value]) => `    ${JSON.stringify(name)}: ${JSON.stringify(value)},`),
    ...(history ? ['    "history": open("history.json").read(),'] : []),
    "}",
    `headers = ${withKey ? '{"Authorization": f"Bearer {os.environ[\'BLSP_KEY\']}"}' : "{}"}`,
    `files = {"file": open(${JSON.stringify(file)}, "rb")}`,
    `url = ${JSON.stringify(url)}`,
    "how = dict(data=data, files=files, headers=headers, timeout=None)",
    'with httpx.stream("POST", url, **how) as reply:',
    "    for line in reply.raise_for_status().iter_lines():",
    '        if line.startswith("data: {"):',
    "            event = json.loads(line[6:])",
    '            print(event.get("delta", ""), end="", flush=True)',
    "",
  ].join("\n");
}

/** Copies the text of an element; where the browser does not let a page do so, selects it. */
export async function copy(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return "Copied.";
  } catch {
    getSelection().selectAllChildren(element);
    return "Selected: copy it with the keyboard.";
  }
}
