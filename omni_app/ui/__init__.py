"""The page: chat, speech to the browser, and what is kept of conversations."""
