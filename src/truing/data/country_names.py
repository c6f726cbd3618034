"""What the fact packages leave open about countries: names, articles, several capitals, and what is not asked."""

from __future__ import annotations

LEFT_OUT = frozenset("AQ BQ BV CC CS CX AN EH GS HM IL IO MS NF NR PS SJ TF TK UM".split())
"""No people, no longer there, no single capital, or disputed: no question has one answer there."""

NO_CITIES = frozenset("HK MO TW XK CY".split())
"""City questions whose country people dispute."""

NO_CURRENCY = frozenset("BG CW SX ZW CU VE".split())
"""Currencies that changed lately or are several."""

NO_CONTINENT = frozenset("RU TR EG KZ AZ GE AM CY ID TL PA TT CW AW".split())
"""On two continents, or differently counted."""

NO_LANGUAGE = frozenset("SS LR RE MQ GP GF BJ GA GN CI AO ST DZ KY VI AI TC AX NC YT".split())
"""The list names one language where people mostly speak others too."""

ALIASES: dict[str, list[str]] = {
    "AE": ["UAE", "Emirates"],
    "BA": ["Bosnia"],
    "BO": ["Bolivia"],
    "CD": ["DR Congo", "DRC", "Congo-Kinshasa", "Democratic Republic of Congo", "Zaire"],
    "CG": ["Congo-Brazzaville", "Congo Republic", "Congo"],
    "CI": ["Côte d'Ivoire", "Cote d'Ivoire"],
    "CN": ["PRC", "People's Republic of China"],
    "CV": ["Cape Verde"],
    "CZ": ["Czech Republic"],
    "FK": ["Falklands", "Malvinas"],
    "FM": ["Federated States of Micronesia"],
    "GB": ["UK", "Great Britain", "Britain", "England"],
    "KP": ["DPRK"],
    "KR": ["Korea", "Republic of Korea"],
    "LA": ["Lao"],
    "MK": ["Macedonia"],
    "MM": ["Burma"],
    "MO": ["Macau"],
    "NL": ["Holland"],
    "PM": ["Saint-Pierre and Miquelon"],
    "RU": ["Russian Federation"],
    "ST": ["São Tomé and Príncipe"],
    "SY": ["Syrian Arab Republic"],
    "SZ": ["Swaziland"],
    "TL": ["East Timor"],
    "TR": ["Türkiye", "Turkiye"],
    "US": ["USA", "US", "United States of America", "America"],
    "VA": ["Vatican City", "Holy See", "Vatican City State"],
    "VC": ["St Vincent", "St Vincent and the Grenadines"],
    "VN": ["Viet Nam"],
}
"""More names by ISO 3166 alpha-2 code."""

CAPITALS: dict[str, list[str]] = {
    "AT": ["Vienna", "Wien"],
    "BI": ["Gitega", "Bujumbura"],
    "BJ": ["Porto-Novo", "Cotonou"],
    "BO": ["Sucre", "La Paz"],
    "CH": ["Bern", "Berne"],
    "CI": ["Yamoussoukro", "Abidjan"],
    "CL": ["Santiago", "Santiago de Chile"],
    "CN": ["Beijing", "Peking"],
    "CZ": ["Prague", "Praha"],
    "GQ": ["Malabo", "Ciudad de la Paz", "Oyala"],
    "ID": ["Jakarta", "Nusantara"],
    "KI": ["South Tarawa", "Tarawa"],
    "KZ": ["Astana", "Nur-Sultan"],
    "LK": ["Sri Jayawardenepura Kotte", "Kotte", "Sri Jayewardenepura Kotte", "Colombo"],
    "ME": ["Podgorica", "Cetinje"],
    "MM": ["Naypyidaw", "Nay Pyi Taw"],
    "MY": ["Kuala Lumpur", "Putrajaya"],
    "NL": ["Amsterdam", "The Hague"],
    "PW": ["Ngerulmud", "Melekeok"],
    "SZ": ["Mbabane", "Lobamba"],
    "TZ": ["Dodoma", "Dar es Salaam"],
    "UA": ["Kyiv", "Kiev"],
    "US": ["Washington", "Washington, D.C.", "Washington DC", "Washington D.C.", "District of Columbia"],
    "YE": ["Sanaa", "Sana'a", "Aden"],
    "ZA": ["Pretoria", "Cape Town", "Bloemfontein"],
}
"""Capitals where the packages' is dated, or where several answers are right."""

CURRENCIES: dict[str, list[str]] = {
    "BT": ["Indian Rupee"],
    "BY": ["Ruble", "Rouble"],
    "CN": ["Yuan", "Renminbi", "RMB"],
    "GB": ["Pound Sterling", "Sterling", "British Pound"],
    "HR": ["Euro"],
    "IL": ["New Shekel"],
    "KH": ["Riel"],
    "LS": ["Rand", "Maloti"],
    "MN": ["Tögrög", "Togrog"],
    "NA": ["Rand"],
    "PA": ["US Dollar", "Dollar", "Balboa"],
    "PE": ["Nuevo Sol"],
    "QA": ["Riyal"],
    "RU": ["Rouble"],
    "SA": ["Riyal"],
    "SZ": ["Emalangeni", "Rand"],
    "TL": ["US Dollar"],
    "US": ["US Dollar", "United States Dollar"],
    "YE": ["Riyal"],
    "OM": ["Riyal"],
    "IR": ["Toman"],
    "SV": ["Bitcoin"],
}
"""More names of a country's money."""

LANGUAGES: dict[str, list[str]] = {
    "dz": ["Dzongkha", "Bhutanese"],
    "my": ["Burmese", "Myanmar"],
    "es": ["Spanish", "Castilian"],
    "ko": ["Korean"],
}
"""Names of languages by ISO 639-1 code, where there are several."""

ELEMENTS: dict[str, list[str]] = {
    "aluminum": ["aluminium"],
    "sulfur": ["sulphur"],
    "cesium": ["caesium"],
}
"""The other spelling of an element."""

ENGLISH_WORDS = frozenset(
    "a i am an as at be by do go ha he hi ho id if in is it la ma me mo my no of oh ok on or os pa pi re so to up us "
    "uk we".split()
)
"""Codes and symbols that are also words (``No`` for nobelium): an answer could hold them by accident."""

_PLURAL = (
    "Islands",
    "Emirates",
    "Netherlands",
    "Philippines",
    "Maldives",
    "Seychelles",
    "Bahamas",
    "Comoros",
    "Vatican",
)
_STARTS = (
    "United ",
    "Democratic Republic",
    "Republic of",
    "Central African",
    "Dominican",
    "Isle of",
    "British ",
    "U.S.",
)


def takes_article(name: str) -> bool:
    """Whether English puts ``the`` before this country's name."""
    return name.endswith(_PLURAL) or name.startswith(_STARTS) or name in ("Gambia",)
