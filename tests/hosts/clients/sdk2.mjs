// @modelcontextprotocol/client, 2.x: node sdk2.mjs URL legacy|auto|modern|sse
import { Client, SSEClientTransport, StreamableHTTPClientTransport } from '@modelcontextprotocol/client'
import { visit } from './visit.mjs'

const [url, kind] = process.argv.slice(2)
const mode = { auto: 'auto', modern: { pin: '2026-07-28' } }[kind] ?? 'legacy'
const client = new Client({ name: `host-sdk2-${kind}`, version: '2.0' }, { versionNegotiation: { mode } })
const transport = kind === 'sse' ? new SSEClientTransport(new URL(url)) : new StreamableHTTPClientTransport(new URL(url))
await client.connect(transport)
console.log(JSON.stringify(await visit(client)))
await client.close()
