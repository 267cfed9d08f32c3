"""A type of step as another package brings it: the alias of a link (ip-link(8)), one dataclass and one handler."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from netplug.drivers.steps import Step
from netplug.kernel.api import MISSING, Outcome, StepError
from netplug.kernel.handlers import Factory
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import RTM_NEWLINK, Netlink, attrs, string, text
from netplug.kernel.netlink.rtnl import IFINFO
from netplug.kernel.rtnetlink_lane import RequestHandler
from netplug.kernel.sandbox.netns import Sandboxes
from netplug.kernel.survey import Survey

RTM_GETLINK, IFLA_IFALIAS = 18, 20
OURS = "outside: "


@dataclass(frozen=True, slots=True)
class Alias:
    """Link `link` has an alias."""

    link: str
    words: str

    @property
    def key(self) -> str:
        return f"alias/{self.link}"


class AliasHandler(RequestHandler[Alias]):
    def ensure(self, step: Alias, sandboxes: Sandboxes) -> Outcome:  # noqa: ARG002
        found = rtnl.link(self.nl, step.link)
        if found is None:
            raise StepError("not_found", step, f"link {step.link!r} is missing")
        before = _aliases(self.nl).get(step.link, "")
        if before == OURS + step.words:
            return Outcome.EQUAL
        self._write(step.link, OURS + step.words)
        return Outcome.ADJUSTED if before else Outcome.CREATED

    def remove(self, step: Alias, sandboxes: Sandboxes) -> None:  # noqa: ARG002
        if rtnl.link(self.nl, step.link):
            self._write(step.link, "")

    def drift(self, step: Alias, survey: Survey) -> str:
        found = survey.dump(_dump).get(step.link)
        if not found:
            return MISSING
        return "" if found == OURS + step.words else f"is {found!r}"

    def owned(self, survey: Survey) -> Iterable[Step]:
        found = survey.dump(_dump)
        return (Alias(link, it.removeprefix(OURS)) for link, it in found.items() if it.startswith(OURS))

    def _write(self, link: str, words: str) -> None:
        index = rtnl.index(self.nl, link)
        self.nl.request(RTM_NEWLINK, IFINFO.pack(0, 0, index, 0, 0) + text(IFLA_IFALIAS, words))


def _dump(_: Survey, nl: Netlink) -> dict[str, str]:
    return _aliases(nl)


def _aliases(nl: Netlink) -> dict[str, str]:
    found = [attrs(data, IFINFO.size) for data in nl.dump(RTM_GETLINK, IFINFO.pack(0, 0, 0, 0, 0))]
    return {string(it[rtnl.IFLA_IFNAME]): string(it[IFLA_IFALIAS]) for it in found if IFLA_IFALIAS in it}


STEPS: Mapping[type[Step], Factory] = {Alias: AliasHandler}
