-- POST one body over and over: wrk -s post.lua URL -- BODY_FILE CONTENT_TYPE
--
-- The request is static, so wrk formats it once and the load generator stays cheap. There is no response() callback on
-- purpose: it would copy every answer into Lua and slow the generator down. wrk itself counts each answer of 400 and up
-- (summary.errors.status), and done() prints everything as one line of JSON.

function init(args)
  local file = assert(io.open(args[1], "rb"))
  wrk.method = "POST"
  wrk.body = file:read("*a")
  wrk.headers["Content-Type"] = args[2]
  file:close()
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'rewarm-wrk {"requests": %d, "duration_us": %d, "bytes": %d, "p50_us": %.1f, "p99_us": %.1f, ' ..
    '"connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d}\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
