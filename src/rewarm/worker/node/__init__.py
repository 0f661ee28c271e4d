"""Node.js functions: `launch` starts the runtime, the `.mjs` files run in it. Nothing but node is needed."""
