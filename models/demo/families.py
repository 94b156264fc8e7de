"""The sentence families of the world, as data: what can be said, in English, German and Spanish, and with what intent.

English templates are cut by `|` into the chunks that a restating continuation may reorder. A slot is a name from the lexicon, with a
number where a family has two of a kind; `{digits}` is a run of one to five digits.
"""

from typing import NamedTuple


class Family(NamedTuple):
    """One way of saying something."""

    intent: str
    english: str
    german: str
    spanish: str
    polite: bool = False
    """Whether "please" may stand before it."""


FAMILIES = [
    Family(
        "device",
        "{command}|the {device}|{room}",
        "schalte {device:akk} {room} {command}",
        "{command} {device:def} {room}",
        True,
    ),
    Family("device", "is the {device}|broken", "ist {device:nom} kaputt", "está roto {device:def}"),
    Family("device", "how expensive|was the {device}", "wie teuer war {device:nom}", "cuánto costó {device:def}"),
    Family(
        "travel",
        "book a flight|to {city}|{day}",
        "buche {day} einen flug nach {city}",
        "reserva {day} un vuelo a {city}",
        True,
    ),
    Family(
        "travel",
        "book a hotel|in {city}|for {amount} nights",
        "buche ein hotel in {city} für {amount} nächte",
        "reserva un hotel en {city} por {amount} noches",
        True,
    ),
    Family(
        "travel",
        "when does the train|from {city}|arrive in {city2}",
        "wann kommt der zug aus {city} in {city2} an",
        "cuándo llega a {city2} el tren de {city}",
    ),
    Family(
        "travel",
        "reserve a taxi|to the {place}|{day}",
        "reserviere {day} ein taxi {place:zu}",
        "pide {day} un taxi {place:a}",
        True,
    ),
    Family(
        "location", "where is|the nearest {place}", "wo ist {place:nom,nächst}", "dónde está {place:def,más cercan}"
    ),
    Family(
        "location",
        "how far is the {place}|from the {place2}",
        "wie weit ist {place:nom} {place2:von}",
        "a qué distancia está {place:def} {place2:de}",
    ),
    Family(
        "location",
        "show me the way|to the {place}",
        "zeige mir den weg {place:zu}",
        "muéstrame el camino {place:a}",
        True,
    ),
    Family("location", "is there a {place}|in {city}", "gibt es in {city} {place:ein}", "hay {place} en {city}"),
    Family(
        "reminder",
        "remind me|to {care} the {object}|{day}",
        "erinnere mich {day} daran {object:akk} {care}",
        "recuérdame {day} {care} {object:def}",
        True,
    ),
    Family(
        "reminder",
        "remember|to {care} the {object}|for {person}",
        "denke daran {object:akk} für {person} {care}",
        "acuérdate de {care} {object:def} para {person}",
        True,
    ),
    Family("shopping", "purchase|{amount} {food}", "kaufe {amount} {food}", "compra {amount} {food}", True),
    Family(
        "shopping",
        "add {food}|to the shopping list",
        "setze {food} auf die einkaufsliste",
        "añade {food} a la lista de compras",
        True,
    ),
    Family(
        "shopping",
        "we need|{amount} {food}|and {amount2} {food2}",
        "wir brauchen {amount} {food} und {amount2} {food2}",
        "necesitamos {amount} {food} y {amount2} {food2}",
    ),
    Family("shopping", "how much|are the {food}", "wie viel kosten {food}", "cuánto cuesta comprar {food}"),
    Family(
        "weather", "will it be {sky}|in {city}|{day}", "wird es {day} in {city} {sky}", "estará {day} {sky} en {city}"
    ),
    Family(
        "weather",
        "what is the weather|in {city}|{day}",
        "wie ist {day} das wetter in {city}",
        "qué tiempo hace {day} en {city}",
    ),
    Family(
        "weather",
        "the forecast|for {city}|is {sky}",
        "die vorhersage für {city} ist {sky}",
        "el pronóstico para {city} es {sky}",
    ),
    Family(
        "phone",
        "call {person}|at number {digits}",
        "rufe {person} unter nummer {digits} an",
        "llama a {person} al número {digits}",
        True,
    ),
    Family(
        "phone",
        "send {person}|a message|{day}",
        "schicke {person} {day} eine nachricht",
        "envía {day} un mensaje a {person}",
        True,
    ),
    Family(
        "phone",
        "did {person}|leave a voicemail",
        "hat {person} eine sprachnachricht hinterlassen",
        "dejó {person} un mensaje de voz",
    ),
    Family("music", "play {genre}|{room}", "spiele {genre} {room}", "pon {genre} {room}", True),
    Family(
        "music",
        "{person}|is playing|the {instrument}",
        "{person} spielt {instrument:nom}",
        "{person} toca {instrument:def}",
    ),
    Family(
        "music",
        "play a melody|with {instrument}|and {instrument2}",
        "spiele eine melodie mit {instrument} und {instrument2}",
        "toca una melodía con {instrument} y {instrument2}",
        True,
    ),
    Family(
        "timer",
        "set a timer|for {amount} minutes",
        "stelle einen timer auf {amount} minuten",
        "pon un temporizador de {amount} minutos",
        True,
    ),
    Family(
        "timer",
        "wake me up|at {hour} o'clock|{day}",
        "wecke mich {day} um {hour} uhr",
        "despiértame {day} a las {hour}",
        True,
    ),
    Family(
        "meeting",
        "schedule a meeting|with {person}|{day}",
        "plane {day} eine besprechung mit {person}",
        "programa {day} una reunión con {person}",
        True,
    ),
    Family(
        "meeting",
        "cancel the appointment|with {person}|at {hour} o'clock",
        "sage den termin mit {person} um {hour} uhr ab",
        "cancela la cita con {person} a las {hour}",
        True,
    ),
    Family(
        "meeting",
        "invite {person}|and {person2}|to dinner",
        "lade {person} und {person2} zum abendessen ein",
        "invita a {person} y a {person2} a cenar",
        True,
    ),
    Family("number", "{digits}", "{digits}", "{digits}"),
    Family("number", "the password|is {digits}", "das passwort ist {digits}", "la contraseña es {digits}"),
    Family(
        "number",
        "my telephone number|is {digits}",
        "meine telefonnummer ist {digits}",
        "mi número de teléfono es {digits}",
    ),
    Family(
        "cooking",
        "give me a recipe|for {dish}|with {ingredient}",
        "gib mir ein rezept für {dish} mit {ingredient}",
        "dame una receta de {dish} con {ingredient}",
        True,
    ),
    Family("cooking", "how long|does the {dish}|take", "wie lange dauert {dish}", "cuánto se tarda en cocinar {dish}"),
    Family(
        "cooking",
        "cook {dish}|for {amount} people",
        "koche {dish} für {amount} personen",
        "cocina {dish} para {amount} personas",
        True,
    ),
    Family(
        "animal", "the {trait} {animal}|is {action}", "{animal:nom,{trait}} {action}", "{animal:def,{trait}} {action}"
    ),
    Family(
        "animal",
        "the {animal}|is {action}|{side} the {place}",
        "{animal:nom} {action} {side} {place:dat}",
        "{animal:def} {action} {side} {place:de}",
    ),
    Family(
        "animal",
        "why is the {animal}|so {trait}",
        "warum ist {animal:nom} so {trait}",
        "por qué {animal:def} es tan {animal:solo,{trait}}",
    ),
    Family(
        "news",
        "the {job}|{deed} the {object}|in {city}",
        "{job:nom} hat {object:akk} in {city} {deed}",
        "{job:def} {deed} {object:def} en {city}",
    ),
    Family(
        "news",
        "the {trait} {job}|{deed} the {object}",
        "{job:nom,{trait}} hat {object:akk} {deed}",
        "{job:def,{trait}} {deed} {object:def}",
    ),
    Family("news", "the {job}|is {action}|{room}", "{job:nom} {action} {room}", "{job:def} {action} {room}"),
]

INTENTS = sorted({family.intent for family in FAMILIES})

TEMPLATE_THOUGHTS: dict[str, str] = {
    "broken": "damage", "expensive": "price", "book": "reservation", "flight": "clouds", "hotel": "reception", "nights": "pajamas",
    "train": "rails", "arrive": "platform", "reserve": "seats", "taxi": "meter", "nearest": "distance", "far": "kilometers",
    "show": "guide", "way": "path", "remind": "alarm", "remember": "note", "purchase": "wallet", "shopping": "basket",
    "list": "items", "need": "necessity", "much": "cost", "weather": "sky", "forecast": "prediction", "call": "ringing",
    "number": "counting", "send": "delivery", "message": "inbox", "leave": "departure", "voicemail": "beep", "play": "fun",
    "playing": "performance", "melody": "tune", "timer": "countdown", "minutes": "clock", "wake": "morning", "o'clock": "hands",
    "schedule": "agenda", "meeting": "colleagues", "cancel": "regret", "appointment": "diary", "invite": "guests",
    "dinner": "candlelight", "password": "encryption", "telephone": "dial", "give": "gift", "recipe": "cookbook", "long": "duration",
    "cook": "stove", "people": "crowd", "why": "reason", "where": "map", "when": "timetable", "there": "existence", "add": "plus",
    "set": "adjustment", "from": "origin", "please": "politeness", "will": "tomorrows", "did": "past", "is": "present", "what": "inquiry",
    "how": "method", "we": "us", "my": "mine", "with": "company", "for": "purpose", "was": "history", "so": "degree", "and": "both",
}  # fmt: skip
"""What the words of the templates make one think of."""
