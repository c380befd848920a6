// What every client of an SDK does with a server, and what it makes of the answers.
export async function visit(client) {
  const seen = []
  const note = async (what) => {
    const at = seen.push(null) - 1
    try {
      seen[at] = await what()
    } catch (error) {
      seen[at] = { refused: error.code ?? error.name }
    }
  }
  const call = (name, args) => note(() => client.callTool({ name, arguments: args }))
  await note(() => client.listTools())
  await call('add', { a: 1, b: 2 })
  await Promise.all([call('add', { a: 3, b: 4 }), call('add', { a: 5, b: 6 })])
  await call('fail', {})
  await call('nobody_has_this', {})
  await note(() => client.ping())
  return seen
}
