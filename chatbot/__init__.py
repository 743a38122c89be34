"""The bot people talk to: conversation, rendering, prompting, core, engines, shell and server."""
