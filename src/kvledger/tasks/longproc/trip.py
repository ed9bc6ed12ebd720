"""Trips for travel planning: requirements, the problem in words, and the search for a plan as LongProc writes it down."""

from __future__ import annotations

from dataclasses import dataclass

from kvledger.tasks.longproc.countdown import bullet

Stay = tuple[str, int, int]
"""City, day of arrival, day of departure."""


@dataclass(frozen=True)
class Trip:
    """Stays in days in the order they are required, fixed first and last days, and one-way flights."""

    stays: tuple[tuple[str, int], ...]
    fixed: tuple[Stay, ...]
    flights: tuple[tuple[str, str], ...]

    @property
    def days(self) -> int:
        return sum(days for _, days in self.stays) - len(self.stays) + 1

    def schedule(self, city: str) -> Stay | None:
        return next((stay for stay in self.fixed if stay[0] == city), None)


class Search:
    """The search for a plan, written down. Gives up, without a plan, after `most` lines."""

    def __init__(self, trip: Trip, most: int = 100_000) -> None:
        self.trip, self.most = trip, most
        self.fixed = sorted(trip.fixed, key=lambda stay: stay[1])
        self.free = [(city, days) for city, days in trip.stays if not trip.schedule(city)]
        self.lines = self._read()
        self.plan: list[Stay] = []
        self.found = self._explore(1)

    def _read(self) -> list[str]:
        lines = [
            "Read the requirements and identify the cities that have fixed schedules and the cities that need to be arranged."
        ]
        for city, days in self.trip.stays:
            fixed = self.trip.schedule(city)
            lines.append(f"* City: {city}, Duration: {days} days{f', Fixed Schedule: {_day(fixed)}' if fixed else ''}.")
        lines.append("")
        if self.fixed:
            lines.append("Cities that have fixed schedules (sorted by their arrival days):")
            lines += [f"* City: {stay[0]}, Fixed Schedule: {_day(stay)}." for stay in self.fixed]
        else:
            lines.append("Cities that have fixed schedules: None.")
        lines.append("")
        if self.free:
            lines.append("Cities needing arrangement:")
            lines += [f"* City: {city}, Duration: {days} days." for city, days in self.free]
        else:
            lines.append("Cities needing arrangement: None.")
        return [*lines, ""]

    def _explore(self, day: int) -> bool:
        level = 2 * len(self.plan)
        self._say(level, f"Current day: {day}. Current plan: {_listed([stay[0] for stay in self.plan])}.")
        if len(self.plan) == len(self.trip.stays):
            self._say(level, f"All {len(self.plan)} cities are arranged. Complete plan is found!")
            return True
        self._say(level, f"Check whether the city with an arrival day of Day {day} - is fixed.")
        for stay in self._choices(day, level):
            if len(self.lines) > self.most:
                return False
            if self._feasible(stay, level + 1):
                self.plan.append(stay)
                if self._explore(stay[2]):
                    return True
                self.plan.pop()
        self._say(level + 1, f"Fail to arrange any option on day {day} in the current arrangement. Drop this branch.")
        return False

    def _choices(self, day: int, level: int) -> list[Stay]:
        if today := [stay for stay in self.fixed if stay[1] == day][:1]:
            self._say(level, f"Yes. The city with an arrival day of Day {day} - is fixed: {today[0][0]}.")
            return today
        been = {stay[0] for stay in self.plan}
        free = [(city, days) for city, days in self.free if city not in been]
        names = _listed([city for city, _ in free])
        self._say(
            level,
            f"No. Consider possible options from cities needing arrangement: {names} and explore these options in order.",
        )
        return [(city, day, day + days - 1) for city, days in free]

    def _feasible(self, stay: Stay, level: int) -> bool:
        """Writes down the checks of one option, up to the first that fails."""
        city, first, last = stay
        here = self.plan[-1][0] if self.plan else "the starting point"
        self._say(
            level,
            f"Try arranging to visit {city} from Day {first}. Duration: {last - first + 1} days. Schedule: {_day(stay)}.",
            f"Check for direct flight from {here} to {city}.",
        )
        if self.plan and (here, city) not in self.trip.flights:
            self._say(level, "No. Drop this branch.")
            return False
        after = next((other for other in self.fixed if other[1] > first), None)
        then = f"{after[0]} ({_day(after)})" if after else "None"
        self._say(
            level,
            "Yes.",
            f"Check whether this arrangement is compatible with the next fixed schedule after Day {first}: {then}.",
        )
        late = after is not None and last > after[1]
        end = "This arrangement is incompatible. Drop this branch." if late else "This arrangement is compatible."
        if after:
            how = f"Day {last} is {'later than (>)' if late else 'not later than (<=)'} Day {after[1]}."
            departs = f"The departure day of {city} is Day {last}. The arrival day of {after[0]} is Day {after[1]}."
            self._say(level, f"{departs} {how} {end}")
        else:
            self._say(level, f"No following fixed schedules. {end}")
        if not late:
            self._say(level, "This arrangement is feasible for now. Continue to arrange the rest of the plan.")
        return not late

    def _say(self, level: int, *lines: str) -> None:
        self.lines += [bullet(level) + line for line in lines]


def _day(stay: Stay) -> str:
    return f"Day {stay[1]} - {stay[2]}"


def _listed(cities: list[str]) -> str:
    return f"[{', '.join(cities)}]"


def procedure(search: Search) -> str:
    """The reference answer: the search and the plan, each between its tags."""
    plan = []
    for number, (city, first, last) in enumerate(search.plan):
        if number:
            plan.append(f"**Day {first}:** Fly from {search.plan[number - 1][0]} to {city}.")
        arrive = "Visit" if number else f"Arriving in {city} and visit"
        plan.append(f"**Day {first}-{last}:** {arrive} {city} for {last - first + 1} days.")
    written = [
        "<Solving Procedure>",
        *search.lines,
        "</Solving Procedure>",
        "",
        "Output the plan in the required format:",
    ]
    return "\n".join([*written, "<Plan>", *plan, "</Plan>"])


def problem(trip: Trip) -> str:
    """The problem in words, up to the question."""
    wishes = []
    for city, days in trip.stays:
        wishes.append(f"You would like to visit {city} for {days} days.")
        if fixed := trip.schedule(city):
            wishes.append(f"You have to be in {city} between day {fixed[1]} and day {fixed[2]}.")
    flights = ", ".join(f"from {a} to {b}" for a, b in trip.flights)
    return (
        f"You plan to visit {len(trip.stays)} European cities for {trip.days} days in total. You only take direct flights to "
        f"commute between cities. {' '.join(wishes)}\n\nHere are the cities that have direct flights:\n{flights}."
    )
