"""Answers 403 to crawlers, known by their user agent. The rule that calls it may say what a crawler is:
args = { pattern = "bot|spider" }."""

import json
import re

from wit_world import exports
from wit_world.imports.host import get_args
from wit_world.imports.types import Header, Metadata, MiddlewareExport, MiddlewareKind
from wit_world.exports.handler_l7_request import (
    L7RequestDecision_Continue,
    L7RequestDecision_Short,
    L7RequestInput,
    SynthResponse,
)

KNOWN = r"bot\b|crawl|spider|slurp"


class Registry(exports.Registry):
    def get_metadata(self) -> Metadata:
        export = MiddlewareExport("refuse", MiddlewareKind.L7_REQUEST, True, False, [], False)
        return Metadata("crawlers", "1.0.0", "0.1.0", [export])


class HandlerL7Request(exports.HandlerL7Request):
    def handle(self, name: str, input: L7RequestInput):
        pattern = json.loads(get_args()).get("pattern", KNOWN)
        agents = [header.value for header in input.headers if header.name == "user-agent"]
        if not any(re.search(pattern, agent, re.IGNORECASE) for agent in agents):
            return L7RequestDecision_Continue()
        kind = Header("content-type", "text/plain")
        return L7RequestDecision_Short(SynthResponse(403, [kind], b"no crawlers here\n"))
