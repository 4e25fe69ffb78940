"""A session of the client that Letta 0.16.8 has, mcp 1.12.4. Run by an environment of its own; prints what came of it.

python old_client.py URL AGENT TOKEN '[["list_tasks", {}], …]'
"""

import asyncio
import json
import sys

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client


async def main(url: str, agent: str, token: str, calls: str) -> None:
    headers = {"x-agent-id": agent, "Authorization": f"Bearer {token}"}
    async with (
        streamablehttp_client(url, headers=headers) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        started = await session.initialize()
        tools = (await session.list_tools()).tools
        found = []
        for name, arguments in json.loads(calls):
            try:
                result = await session.call_tool(name, arguments)
            except Exception as error:
                found.append(["raised", str(error)])
            else:
                (content,) = result.content
                found.append(["error" if result.isError else "answer", content.text])
        print(json.dumps({"protocol": started.protocolVersion, "tools": [tool.name for tool in tools], "found": found}))


asyncio.run(main(*sys.argv[1:]))
