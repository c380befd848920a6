// @modelcontextprotocol/sdk, 1.x: node sdk1.mjs URL http|sse
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { visit } from './visit.mjs'

const [url, kind] = process.argv.slice(2)
const client = new Client({ name: 'host-sdk1', version: '1.0' })
const transport = kind === 'sse' ? new SSEClientTransport(new URL(url)) : new StreamableHTTPClientTransport(new URL(url))
await client.connect(transport)
console.log(JSON.stringify(await visit(client)))
if (kind === 'http') await transport.terminateSession().catch(() => {})
await client.close()
