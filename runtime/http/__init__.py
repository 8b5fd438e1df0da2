"""What every HTTP server of ours shares: problem documents, their wording, and serving.

May import starlette, pydantic, uvicorn. Never: a route.
"""
