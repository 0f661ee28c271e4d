-- Like post.lua, but no two of 4096 requests in a row have the same head: each carries a request id of its own.
--
-- They are formatted once, so that the load generator stays cheap here as well.

local requests, at = {}, 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  wrk.method = "POST"
  wrk.body = file:read("*a")
  wrk.headers["Content-Type"] = args[2]
  file:close()
  for i = 1, 4096 do
    wrk.headers["X-Request-Id"] = string.format("%032x", i * 2654435761)
    requests[i] = wrk.format()
  end
end

function request()
  at = at % 4096 + 1
  return requests[at]
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'rewarm-wrk {"requests": %d, "duration_us": %d, "bytes": %d, "p50_us": %.1f, "p99_us": %.1f, ' ..
    '"connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d}\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
