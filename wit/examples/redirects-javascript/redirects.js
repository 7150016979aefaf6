// Redirects paths that have moved. The rule that calls it says which: args = { "/old" = "/new" }.

import { getArgs } from "vane:host/host@0.1.0";

export const registry = {
  getMetadata() {
    return {
      name: "redirects",
      version: "1.0.0",
      abiVersion: "0.1.0",
      exports: [
        {
          name: "redirect",
          kind: "l7-request",
          stateless: true,
          needsBody: false,
          inspects: [],
          needsStreamingBody: false,
        },
      ],
    };
  },
};

export const handlerL7Request = {
  handle(_export, input) {
    const moved = JSON.parse(getArgs());
    const [path, query] = input.uri.split("?", 2);
    if (!Object.hasOwn(moved, path)) {
      return { tag: "continue" };
    }
    const location = query === undefined ? moved[path] : `${moved[path]}?${query}`;
    return {
      tag: "short",
      val: { status: 308, headers: [{ name: "location", value: location }], body: new Uint8Array() },
    };
  },
};
