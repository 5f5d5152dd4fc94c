"""Events that ask before they do something that cannot be taken back."""

from __future__ import annotations


def confirmed(question: str, *inputs: str) -> str:
    """The `js` of an event with these inputs, which goes on if the visitor says yes. `question` is an expression in
    JavaScript that may use the inputs. After a no it waits for ever: Gradio would take anything thrown for a failure
    and cover what the event shows with the word "Error"."""
    names = ", ".join(inputs)
    return f"({names}) => confirm({question}) ? [{names}] : new Promise(() => {{}})"
