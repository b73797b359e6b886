"""The OpenAPI document as a page to read and try, with nothing from any other site."""

from functools import cache
from importlib.resources import files
from typing import Final

from starlette.responses import Response

PATH: Final = "/docs"
_FOLDER: Final = "vendor/swagger-ui-4.15.5"
_PAGE: Final = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>jobworker</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START: Final = (
    'SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui", validatorUrl: null, deepLinking: true});\n'
)
_TYPES: Final = {"css": "text/css", "js": "text/javascript"}
#: The page runs scripts of this server only, whatever the document says; Swagger UI sets styles of its own.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; connect-src 'self'"
)
#: What the page is made of beside itself.
ASSETS: Final = ("swagger-ui.css", "swagger-ui-bundle.js", "start.js")


def page() -> Response:
    """The page."""
    return Response(_PAGE, headers={"content-security-policy": _POLICY}, media_type="text/html")


def asset(name: str) -> Response:
    """One of the `ASSETS`."""
    content = _START.encode() if name == "start.js" else _vendored(name)
    return Response(content, media_type=_TYPES[name.rpartition(".")[2]])


@cache
def _vendored(name: str) -> bytes:
    return files("swagger_ui_bundle").joinpath(_FOLDER, name).read_bytes()
