"""The pages' templates."""

from pathlib import Path

import jinja2


def template(name: str) -> jinja2.Template:
    """A template of this folder; what is put into it is escaped, and a name that it lacks is an error."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    ).get_template(name)
