"""Orders, questions, small talk and stories, made of templates and of the commonest words of WordNet."""

import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

SLOTS = """
name: John Mary Peter Anna Tom Sarah David Emma James Lucy George Alice Henry Jane Robert Kate William Laura Paul
  Helen Philip Rachel Martin Susan Michael Clara Edward Julia Frank Maria Oliver Sophie Charles Ruth Arthur Nora
  Daniel Grace Simon Rose Mister_Brown Missus_Clark Doctor_Green Captain_Miller Uncle_Jack Aunt_Martha Sir_Thomas
  Lady_Margaret
country: France Germany Italy Spain England Scotland Ireland Russia China Japan India Egypt Kenya Brazil Mexico Canada
  Australia Poland Greece Turkey Norway Sweden Denmark Portugal Austria Switzerland Argentina Chile Peru Cuba Iran
  Iraq Israel Korea Vietnam Thailand Nigeria
city: London Paris Berlin Rome Madrid Moscow Boston Chicago Dublin Vienna Athens Cairo Delhi Tokyo Sydney Toronto
  Seattle Denver Dallas Houston Miami Lisbon Prague Oslo Amsterdam Brussels Edinburgh Glasgow Manchester New_York
  San_Francisco Los_Angeles
num: one two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty fifty sixty thirteen
  fourteen sixteen seventeen eighteen nineteen twenty-five ninety eighty seventy a_hundred a_thousand a_dozen
day: Monday Tuesday Wednesday Thursday Friday Saturday Sunday tomorrow today tonight
month: January February March April May June July August September October November December
ordinal: first second third fourth fifth tenth twelfth fifteenth twentieth thirtieth
color: red green blue yellow black white brown grey orange purple pink golden silver
size: small medium large big little tall double single regular extra_large eight_ounce twelve_ounce sixteen_ounce
  twenty_ounce
drink: coffee espresso latte cappuccino mocha americano tea macchiato hot_chocolate lemonade orange_juice water milk
  beer wine
roast: light_roast medium_roast dark_roast decaf
milk: skim_milk soy_milk almond_milk whole_milk two_percent_milk cream low_fat_milk oat_milk
sweet: sugar brown_sugar honey cinnamon vanilla syrup sweetener a_lot_of_sugar a_little_bit_of_sugar some_sugar
  no_sugar a_bit_of_cream
food: pizza bread cheese soup salad rice pasta chicken fish beef eggs butter apples bananas potatoes tomatoes onions
  chocolate cake cookies sandwiches noodles beans carrots oranges
room: kitchen bedroom bathroom living_room garage hall office garden basement dining_room
device: light lights lamp television radio heating fan music camera alarm door window computer washing_machine
  air_conditioner
music: jazz rock classical_music pop country_music the_blues folk_songs the_news a_podcast piano_music
person: man woman boy girl king queen soldier doctor teacher farmer captain lady gentleman child stranger servant
  lawyer sailor priest old_man young_man old_woman merchant poor_fellow little_girl
past: saw heard found took left knew met loved followed watched remembered carried bought sold lost brought held
  wanted forgot kept stole broke drew fed hid threw caught chose tore wore wrote read built lit swept made fought led
said: said thought believed knew told_me answered cried replied whispered hoped declared supposed explained admitted
went: went came ran walked hurried returned travelled rode rushed climbed moved sailed
prep: into through over across from towards behind near under beyond along around
adv: slowly quickly quietly suddenly again at_once for_a_moment without_a_word very_carefully in_silence at_last
  once_more together alone with_great_care in_the_morning in_the_evening the_next_day that_night after_a_while
time: five_o'clock half_past_six noon midnight a_quarter_to_nine seven_thirty eight_in_the_morning ten_in_the_evening
  six_fifteen
unit: minutes hours seconds days weeks years miles feet pounds dollars
be: is was will_be must_be may_be seems looked became
pro: he she they we I you
verb: see find make take write read build break draw keep buy bring use sell hold paint clean share
few: one two three four five
kin: mother father brother sister uncle aunt friend cousin wife husband son daughter grandmother neighbor teacher
"""
KINDS = {
    "act": "4",
    "animal": "5",
    "thing": "6",
    "body": "8",
    "feeling": "12",
    "group": "14",
    "place": "15",
    "human": "18",
}
"""Slots of nouns, by WordNet's files of senses; those of plants and foods are few."""
DETERMINERS = (
    "some",
    "each",
    "many",
    "much",
    "few",
    "several",
    "every",
    "another",
    "any",
    "same",
    "such",
    "other",
    "both",
)
UNFIT = re.compile(
    r"(?i)\b(sex|rape|naked|nude|penis|penile|vagina|vulva|semen|ejacul|masturb|testic|genital|anus|anal\b|breast|nipple|whore|prostitut"
    r"|bitch|fuck|shit|piss|cunt|cock\b|dick\b|slut|orgas|intercourse|copulat|nigger|negro|nazi|kike|faggot|homosex|lesbian|erotic|bastard"
    r"|fart|feces|excre|suicid|incest|condom|tits?\b|arse|ass(hole)?s?\b|pornog|pubic|clitor|scrot|foreskin|damn|darky|redskin|lynch)"
)
"""What nobody should have to hear, as far as a list can know it."""
TEMPLATES = """
What is the capital of {country}? | What is {a/thing}? | What is {a/animal}? | What does {noun} mean?
Where is {city}? | Where can I buy {things}? | Who invented the {thing}? | How do you make {food}?
How do you make {a/thing}? | How do I {do} {a/thing}? | How many {bodys} does {a/animal} have?
Why is the {thing} {color}? | Why are {animals} so {adj}? | What time is it in {city}?
When was the {ordinal} {thing} built? | How far is it from {city} to {city}?
Which is bigger, {a/animal} or {a/animal}? | What color is {a/plant}? | Do you like {food}?
Who is your {adj} {human}? | What is {num} plus {num}? | What is {num} times {num}? | What is {num} minus {num}?
What is the largest {place} in {country}? | Who is the president of {country}? | Can you {do} the {noun}?
Can you explain {noun} to me? | What is the difference between {a/thing} and {a/thing}?
Give me {num} ideas for {a/adj} {thing}. | Tell me a story about {a/adj} {animal}. | Tell me a joke about {humans}.
Write a short poem about {noun}. | Write a letter to {name} about the {noun}. | Name three {adj} {animals}.
List {num} {things}. | What should I {verb} on {day}? | Where do {animals} live? | What do {animals} eat?
Set a timer for {num} {unit}. | Wake me up at {time} {day}. | Remind me to {verb} the {thing} at {time}.
Turn on the {device} in the {room}. | Turn off the {device}, please. | Turn the {device} up in the {room}.
Play some {music}. | Play {music} in the {room}. | Call {name}. | Call the {human}, please.
Send a message to {name} that I will be {adj}. | Add {food} and {food} to my shopping list. | Buy {num} {things}.
What is the weather like in {city} {day}? | Will it rain in {city} {day}? | Book a table for {num} at {time}.
Find me a flight from {city} to {city} {day}. | Take me to the {place}. | Drive to {city}, please.
How do I get to {city}? | How do I get to the {place}? | Cancel my meeting with {name} {day}.
Is there {a/thing} near here? | Make the {device} {color}. | Set the temperature to {num} degrees. | Stop the music.
Can I get a {size} {drink}? | Could I have a {size} {drink} with {milk}?
I would like a {size} {roast} {drink} with {milk} and {sweet}. | I'd like to order a {size} {drink}, {roast}.
Give me a {size} {drink} with {sweet}. | Can I have a {size} {roast} {drink} with {sweet} and {milk}, please?
May I get a {drink} with {few} shots of espresso and {milk}? | Just {a/drink}, please.
Make me a {drink}, {size}, with {sweet}, please. | I want a {size} {drink} with {few} spoons of {sweet}.
Let me have a {drink} with {milk} and some {food}. | Hey, get me a {size} {drink}.
Can I order {food} with {food} and {food}? | I'll have the {food} and {few} {roast} {drinks}, please.
No {sweet}, but {milk} in my {drink}. | {few} {drinks} and {food} to go, please. | The {person} {past} the {thing}.
The {adj} {person} {past} {a/thing} and {past} it {adv}. | {name} {past} the {adj} {noun} of the {human}.
{name} {said} that the {person} had been {adj}. | {pro} {went} {prep} the {place} {adv}.
The {person} {went} {prep} the {adj} {place}, and {name} {past} him {adv}. | He {said} that the {noun} was {adj}.
She {past} the {thing} with {a/adj} {thing} in her hand. | There was {a/adj} {thing} in the {room}.
There were {num} {things} and {num} {adj} {animals}. | It was {a/adj} {noun}, and the {nouns} were {adj}.
It is {adj} to {do} {a/noun}. | The {body} of the {animal} {be} {adj}. | The {adj} {noun} {be} {adj} and {adj}.
{a/noun} without {a/noun} {be} {adj}. | But the {noun} {be} no {noun} at all.
And so {name} {past} the {things} of {country}. | In {month}, the {person} {went} to {city}.
When the {act} was over, the {person} {past} the {things}. | If you {do} the {thing}, the {noun} will be {adj}.
I {past} it {adv}, for the {noun} was {adj}. | I have never seen such {a/adj} {human}. | {pro} {did} the {thing} {adv}.
My {body} is {adj}, but your {body} is {adj}. | We {past} the {noun} because of its {adj} {nouns}.
They {past} all the {things} that {name} had left. | You must {do} the {adj} {things} before {time}.
The {human} {did} the {noun}. | On the {ordinal} of {month}, {name} {went} from {city} to {city}.
Nothing is so {adj} as {a/adj} {noun}. | Oh, {name}, what {a/adj} {noun}! | He was {a/adj} {person} of {num} years.
Thank you, {name}. | {name} {did} {a/noun} and {did} it. | Good morning, {name}, how is the {human}?
Yes, I {past} the {thing}. | No, the {noun} {be} not {adj}. | The use of {things} in {act} {be} {adj}.
The {nouns}, the {nouns}, and the {nouns} were all {adj}. | Please {do} the {thing} {adv}.
{pro} {said} that the {person} had gone to the {place}. | In {feeling} the {human} {did} {a/noun}.
Hello, my name is {name}, and I live in {city}. | How are you today, {name}? | I feel {adj} {adv}.
When I was {num}, I {past} {a/adj} {animal}. | My {kin} {past} me {a/thing} in {month}.
Last night I {past} my {kin} {prep} the {place}. | The {group} of {country} {did} the {act}.
{name}'s {kin} {did} the {adj} {noun}. | I am sorry about your {thing}, {name}. | The {plant} grew {prep} the {place}.
See you {day} at {time}. | What do you think about the {noun}?
It was {time} when the {person} {went} {prep} the {room}. | All {humans} {do} {nouns}.
"""


def common_words(wordnet: Path, known: set[str]) -> dict[str, dict[str, float]]:
    """The known words for the slots of WordNet, with how often each is drawn: by its counts in tagged text."""
    counts: dict[str, Counter[str]] = {slot: Counter() for slot in (*KINDS, "plant", "noun", "adj", "do", "did")}
    acted_on = {
        lemma
        for line in (wordnet / "data.verb").read_text().splitlines()
        if " + 08 00" in line
        for lemma in line.split()[4:5]
    }
    irregular = {line.split()[1] for line in (wordnet / "verb.exc").read_text().splitlines()}
    slot_of = {file: slot for slot, file in KINDS.items()} | {"20": "plant"}
    for line in (wordnet / "cntlist.rev").read_text().splitlines():
        key, _, count = line.split()
        lemma, _, sense = key.partition("%")
        part, file = sense.split(":")[:2]
        if lemma not in known or not 2 < len(lemma) < 13 or UNFIT.search(lemma):
            continue
        if part == "1":
            counts["noun"][lemma] += int(count)
            if file.lstrip("0") in slot_of:
                counts[slot_of[file.lstrip("0")]][lemma] += int(count)
        elif part in "35" and lemma not in DETERMINERS:
            counts["adj"][lemma] += int(count)
        elif part == "2" and lemma in acted_on:
            counts["do"][lemma] += int(count)
            if lemma not in irregular:
                counts["did"][past(lemma)] += int(count)
    return {slot: {word: n**0.5 for word, n in found.items() if n > 1} for slot, found in counts.items()}


def past(verb: str) -> str:
    """Of a regular verb that doubles no letter."""
    return re.sub("(?<=[^aeiou])y$", "i", verb.removesuffix("e")) + "ed"


def plural(noun: str) -> str:
    """By the rules of spelling."""
    irregular = {"man": "men", "foot": "feet", "tooth": "teeth", "child": "children", "mouse": "mice", "goose": "geese"}
    for one, many in irregular.items():
        if noun.endswith(one) and noun != "human":
            return noun.removesuffix(one) + many
    if re.search("[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if re.search("(s|x|z|ch|sh)$", noun) else "" if noun in ("fish", "sheep", "deer") else "s")


def templated(wordnet: Path, known: set[str], rng: random.Random, count: int) -> Iterator[str]:
    """`count` sentences of the templates, with words drawn by their frequency."""
    templates = [template.strip() for template in TEMPLATES.strip().replace("\n", "|").split("|")]
    pools: dict[str, tuple[list[str], list[float] | None]] = {
        slot: (list(words), list(accumulate(words.values()))) for slot, words in common_words(wordnet, known).items()
    }
    for line in re.split(r"\n(?=\w)", SLOTS.strip()):
        slot, _, words = line.partition(":")
        pools[slot] = ([word.replace("_", " ") for word in words.split()], None)

    lengths = [len(template.split()) for template in templates]  # long ones have more to vary

    def fill(match: re.Match[str]) -> str:
        article, slot, many = match.groups()
        words, weights = pools[slot]
        word = rng.choices(words, cum_weights=weights)[0]
        word = plural(word) if many else word
        return f"a {word}" if article else word

    for _ in range(count):
        text = re.sub(r"{(a/)?(\w+?)(s?)}", fill, rng.choices(templates, lengths)[0])
        yield re.sub(r"\b([Aa]) (?=[aeio]|u(?!ni|s[eu]))", r"\1n ", text)
