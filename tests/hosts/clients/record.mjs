// Preloaded into a client of whatever kind: writes down every HTTP exchange, and changes none.
import { appendFileSync } from 'node:fs'

const real = globalThis.fetch
const exchanges = []

globalThis.fetch = async (input, init = {}) => {
  const request = input instanceof Request ? input : undefined
  const exchange = {
    method: init.method ?? request?.method ?? 'GET',
    path: new URL(request?.url ?? input).pathname,
    headers: Object.fromEntries(new Headers(init.headers ?? request?.headers)),
    body: typeof init.body === 'string' ? init.body : request?.body ? await request.clone().text() : '',
    status: 0,
    answered: {},
    answer: ''
  }
  exchanges.push(exchange)
  const response = await real(input, init)
  exchange.status = response.status
  exchange.answered = Object.fromEntries(response.headers)
  if (!response.body) return response
  const [ours, theirs] = response.body.tee()
  void keep(ours, exchange)
  const given = new Response(theirs, { status: response.status, statusText: response.statusText, headers: response.headers })
  Object.defineProperty(given, 'url', { value: response.url })
  return given
}

async function keep(stream, exchange) {
  try {
    for await (const piece of stream.pipeThrough(new TextDecoderStream())) exchange.answer += piece
  } catch {
    // The client has closed it: what came is what there is.
  }
}

process.on('exit', () => {
  for (const exchange of exchanges) appendFileSync(process.env.EXCHANGES, JSON.stringify(exchange) + '\n')
})
