"""/docs: the OpenAPI document as one page of HTML, with no script and no request to the network.

Never: a description that is not in the document. May import the standard library.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

CSP = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#222}
summary{cursor:pointer;padding:.35rem 0;font-family:ui-monospace,monospace}summary small{color:#666;font-family:system-ui}
b.method{display:inline-block;width:4.5rem}pre{background:#f5f5f2;padding:.7rem;overflow-x:auto}
details{border-bottom:1px solid #e4e4e0}details>div{padding:0 0 1rem 1rem}code{font-family:ui-monospace,monospace}
table{border-collapse:collapse}td{padding:.1rem 1rem .1rem 0;vertical-align:top}
@media(prefers-color-scheme:dark){body{background:#1b1b1a;color:#ddd}pre{background:#262625}details{border-color:#333}}
"""


def _json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"


def _resolved(document: dict[str, Any], node: Any) -> Any:
    while isinstance(node, dict) and "$ref" in node:
        found: Any = document
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


def _content(document: dict[str, Any], content: dict[str, Any]) -> str:
    html_parts = []
    for kind, media in content.items():
        reference = media.get("schema", {}).get("$ref", "")
        name = reference.rpartition("/")[2]
        link = f' <a href="#schema-{escape(name)}">{escape(name)}</a>' if name else ""
        html_parts.append(f"<p><code>{escape(kind)}</code>{link}</p>")
        if "example" in media:
            example = media["example"]
            html_parts.append(f"<pre>{escape(example)}</pre>" if isinstance(example, str) else _json(example))
    return "".join(html_parts)


def _operation(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = "".join(
        f"<tr><td><code>{escape(p['name'])}</code></td><td>{escape(p['in'])}</td>"
        f"<td>{'required' if p.get('required') else ''}</td><td>{escape(p.get('description', ''))}</td></tr>"
        for p in operation.get("parameters", ())
    )
    answers = []
    for status, answer in operation["responses"].items():
        found = _resolved(document, answer)
        shown = _content(document, found.get("content", {})) if status.startswith("2") else ""
        answers.append(f"<tr><td><b>{escape(status)}</b></td><td>{escape(found['description'])}{shown}</td></tr>")
    body = operation.get("requestBody", {}).get("content")
    return (
        f'<details id="{escape(operation["operationId"])}"><summary><b class="method">{escape(method.upper())}</b>'
        f"{escape(path)} <small>{escape(operation.get('summary', ''))}</small></summary><div>"
        f"<p>{escape(operation.get('description', ''))}</p>"
        + (f"<h4>Parameters</h4><table>{parameters}</table>" if parameters else "")
        + (f"<h4>Body</h4>{_content(document, body)}" if body else "")
        + f"<h4>Answers</h4><table>{''.join(answers)}</table></div></details>"
    )


def docs_page(document: dict[str, Any]) -> str:
    """The page."""
    by_tag: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag = operation.get("tags", ["other"])[0]
            by_tag.setdefault(tag, []).append(_operation(document, method, path, operation))
    sections = "".join(f"<h2>{escape(tag)}</h2>{''.join(parts)}" for tag, parts in by_tag.items())
    schemas = "".join(
        f'<details id="schema-{escape(name)}"><summary>{escape(name)}</summary><div>{_json(schema)}</div></details>'
        for name, schema in sorted(document["components"]["schemas"].items())
    )
    info = document["info"]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])} API</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>"
        f'<p>Every call has <code>Authorization: Bearer &lt;API key&gt;</code>. For machines: <a href="/openapi.json">'
        f"/openapi.json</a>.</p>{sections}<h2>schemas</h2>{schemas}</body></html>"
    )
