"""An application of aiohttp on loopback: what another service answers, as a test wants it."""

from contextlib import asynccontextmanager

from aiohttp import web


@asynccontextmanager
async def serving(app, ssl_context=None):
    """Serve an application on a free port, and yield its URL, without a slash at the end."""
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl_context).start()
        host, port = runner.addresses[0][:2]
        yield f"{'http' if ssl_context is None else 'https'}://{host}:{port}"
    finally:
        await runner.cleanup()
