"""What every HTTP server of the project shares: problem documents, their wording, and serving.

May import starlette, pydantic, uvicorn. Never: a route.
"""
