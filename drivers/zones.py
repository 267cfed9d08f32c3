"""The step for firewalld's zone of our links; see `firewalld`."""

from dataclasses import dataclass

from .checked_texts import LinkPattern

ZONE = "netplug"


@dataclass(frozen=True, slots=True)
class Zone:
    """firewalld's zone ``netplug`` has `link`, if firewalld runs. ``+`` at the end of the name stands for any rest.

    A link that is in another zone stays there: the administrator chose it.
    """

    link: LinkPattern

    @property
    def key(self) -> str:
        return f"zone/{self.link}"
