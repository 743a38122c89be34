"""GET /v1/models: the chat model, and the encoders and names of the caller's indexes."""

from __future__ import annotations

from typing import Any

from chatbot.api.errors import ApiError
from chatbot.api.service import Caller, Service


def list_models(service: Service, caller: Caller) -> dict[str, Any]:
    """OpenAI's list of models, the chat model first; and `indexes`, what the caller may search: where there are none,
    answers come from the model alone."""
    encoders = [service.collections[name].encoder for name in caller.collections]
    names = dict.fromkeys([service.bot.model.name, *(encoder.name for encoder in encoders if encoder)])
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "parley"} for name in names]
    return {"object": "list", "data": data, "indexes": list(caller.collections)}


def get_model(service: Service, caller: Caller, name: str) -> dict[str, Any]:
    """One of them. ApiError for any other name."""
    data: list[dict[str, Any]] = list_models(service, caller)["data"]
    for model in data:
        if model["id"] == name:
            return model
    known = ", ".join(model["id"] for model in data)
    raise ApiError(404, f"there is no model {name[:60]!r} (there are: {known})", "model_not_found", "model")
