"""Why a server cannot be run as it is configured."""


class ConfigRefused(Exception):  # noqa: N818 - it says what happened, as every refusal here does
    """The configuration cannot be used; the message names file, key, value and what is allowed."""
