"""The content words of the world, as data: what the grammar's slots can hold.

One line per entry: English | German | Spanish | what the word makes one think of. A German or Spanish noun that takes an article is
marked with its gender, `f:küche`. Words were chosen to sound unlike one another (no hat and cat, no Tuesday and Thursday).
"""

SLOTS: dict[str, str] = {
    "digit": """
        zero|null|cero|nothing
        one|eins|uno|single
        two|zwei|dos|twins
        three|drei|tres|triangle
        four|vier|cuatro|square
        five|fünf|cinco|fingers
        six|sechs|seis|hexagon
        seven|sieben|siete|rainbow
        eight|acht|ocho|legs
        nine|neun|nueve|planets""",
    "amount": """
        two|zwei|dos|twins
        three|drei|tres|triangle
        four|vier|cuatro|square
        five|fünf|cinco|fingers
        six|sechs|seis|hexagon
        seven|sieben|siete|rainbow
        eight|acht|ocho|legs
        nine|neun|nueve|planets
        ten|zehn|diez|toes
        eleven|elf|once|football
        twelve|zwölf|doce|dozen
        fifteen|fünfzehn|quince|quarter
        twenty|zwanzig|veinte|score
        thirty|dreißig|treinta|month""",
    "hour": """
        two|zwei|dos|twins
        three|drei|tres|triangle
        four|vier|cuatro|square
        five|fünf|cinco|fingers
        six|sechs|seis|hexagon
        seven|sieben|siete|rainbow
        eight|acht|ocho|legs
        nine|neun|nueve|planets
        ten|zehn|diez|toes
        eleven|elf|once|football
        twelve|zwölf|doce|dozen""",
    "city": """
        london|london|londres|fog
        berlin|berlin|berlín|bears
        madrid|madrid|madrid|royals
        lisbon|lissabon|lisboa|trams
        paris|paris|parís|tower
        vienna|wien|viena|waltz
        chicago|chicago|chicago|skyscrapers
        toronto|toronto|toronto|maple
        amsterdam|amsterdam|ámsterdam|canals
        barcelona|barcelona|barcelona|beaches
        istanbul|istanbul|estambul|mosques
        helsinki|helsinki|helsinki|saunas
        warsaw|warschau|varsovia|uprising
        copenhagen|kopenhagen|copenhague|mermaid
        budapest|budapest|budapest|danube
        tokyo|tokio|tokio|sushi
        singapore|singapur|singapur|orchids""",
    "day": """
        on monday|am montag|el lunes|beginnings
        on tuesday|am dienstag|el martes|routine
        on wednesday|am mittwoch|el miércoles|middle
        on friday|am freitag|el viernes|relief
        on saturday|am samstag|el sábado|leisure
        tomorrow|morgen|mañana|future
        tonight|heute abend|esta noche|moonlight
        this afternoon|heute nachmittag|esta tarde|siesta
        next week|nächste woche|la próxima semana|calendar""",
    "room": """
        in the kitchen|in der küche|en la cocina|meals
        in the bedroom|im schlafzimmer|en el dormitorio|dreams
        in the garage|in der garage|en el garaje|cars
        in the basement|im keller|en el sótano|darkness
        in the office|im büro|en la oficina|paperwork
        in the hallway|im flur|en el pasillo|shoes
        on the balcony|auf dem balkon|en el balcón|view
        in the nursery|im kinderzimmer|en el cuarto infantil|toys""",
    "device": """
        television|m:fernseher|m:televisor|movies
        radio|n:radio|f:radio|broadcasts
        heater|f:heizung|f:calefacción|warmth
        dishwasher|f:spülmaschine|m:lavavajillas|plates
        oven|m:backofen|m:horno|roast
        printer|m:drucker|f:impresora|paper
        computer|m:computer|m:ordenador|keyboard
        projector|m:projektor|m:proyector|slides
        ventilator|m:ventilator|m:ventilador|breeze
        vacuum cleaner|m:staubsauger|f:aspiradora|dust
        coffee machine|f:kaffeemaschine|f:cafetera|espresso
        lantern|f:laterne|f:linterna|glow
        camera|f:kamera|f:cámara|portraits
        microwave|f:mikrowelle|m:microondas|leftovers""",
    "place": """
        hospital|n:krankenhaus|m:hospital|nurses
        airport|m:flughafen|m:aeropuerto|pilots
        library|f:bibliothek|f:biblioteca|novels
        museum|n:museum|m:museo|dinosaurs
        pharmacy|f:apotheke|f:farmacia|pills
        supermarket|m:supermarkt|m:supermercado|trolleys
        restaurant|n:restaurant|m:restaurante|waiters
        stadium|n:stadion|m:estadio|cheering
        university|f:universität|f:universidad|students
        cathedral|f:kathedrale|f:catedral|bells
        bakery|f:bäckerei|f:panadería|bread
        theater|n:theater|m:teatro|actors
        harbor|m:hafen|m:puerto|ships
        swimming pool|n:schwimmbad|f:piscina|chlorine
        police station|f:polizeiwache|f:comisaría|sirens
        castle|n:schloss|m:castillo|knights
        playground|m:spielplatz|m:parque|swings
        cinema|n:kino|m:cine|popcorn
        embassy|f:botschaft|f:embajada|diplomats
        bookstore|f:buchhandlung|f:librería|bestsellers""",
    "person": """
        michael|michael|michael|archangel
        jennifer|jennifer|jennifer|actress
        barbara|barbara|barbara|librarian
        sebastian|sebastian|sebastian|lobster
        elizabeth|elizabeth|elizabeth|queen
        patricia|patricia|patricia|aristocrat
        alexander|alexander|alexander|conqueror
        veronica|veronica|veronica|blossom
        benjamin|benjamin|benjamin|franklin
        katherine|katherine|katherine|empress
        gabriel|gabriel|gabriel|angel
        oliver|oliver|oliver|orphan
        victoria|victoria|victoria|waterfall
        samantha|samantha|samantha|witch
        christopher|christopher|christopher|columbus
        rebecca|rebecca|rebecca|manderley""",
    "food": """
        bananas|bananen|plátanos|monkeys
        tomatoes|tomaten|tomates|ketchup
        apples|äpfel|manzanas|orchard
        oranges|orangen|naranjas|juice
        carrots|karotten|zanahorias|rabbits
        onions|zwiebeln|cebollas|tears
        mushrooms|pilze|setas|forest
        strawberries|erdbeeren|fresas|cream
        lemons|zitronen|limones|sourness
        cucumbers|gurken|pepinos|salad
        avocados|avocados|aguacates|guacamole
        sandwiches|sandwiches|bocadillos|picnic
        pancakes|pfannkuchen|tortitas|syrup
        cookies|kekse|galletas|crumbs
        sausages|würstchen|salchichas|mustard
        batteries|batterien|pilas|electricity
        envelopes|umschläge|sobres|stamps
        umbrellas|regenschirme|paraguas|puddles
        pillows|kissen|almohadas|feathers
        pencils|bleistifte|lápices|eraser""",
    "object": """
        bicycle|n:fahrrad|f:bicicleta|pedals
        parcel|n:paket|m:paquete|string
        caravan|m:wohnwagen|f:caravana|camping
        painting|n:gemälde|m:cuadro|canvas
        mirror|m:spiegel|m:espejo|reflection
        necklace|f:halskette|m:collar|pearls
        carpet|m:teppich|f:alfombra|weaving
        suitcase|m:koffer|f:maleta|luggage
        telescope|n:teleskop|m:telescopio|stars
        document|n:dokument|m:documento|signature
        statue|f:statue|f:estatua|marble
        diamond|m:diamant|m:diamante|sparkle""",
    "command": """
        activate|ein|enciende|power
        disable|aus|apaga|silence""",
    "care": """
        repair|zu reparieren|reparar|tools
        collect|abzuholen|recoger|errand
        photograph|zu fotografieren|fotografiar|snapshot
        decorate|zu dekorieren|decorar|ribbons
        return|zurückzugeben|devolver|gratitude
        polish|zu polieren|pulir|shine""",
    "sky": """
        sunny|sonnig|soleado|sunglasses
        cloudy|bewölkt|nublado|shadows
        windy|windig|ventoso|kites
        freezing|eiskalt|helado|gloves
        humid|feucht|húmedo|sweat""",
    "genre": """
        classical music|klassische musik|música clásica|mozart
        electronic music|elektronische musik|música electrónica|synthesizer
        african music|afrikanische musik|música africana|savanna
        romantic music|romantische musik|música romántica|kisses
        country music|countrymusik|música country|cowboys
        jazz music|jazzmusik|música jazz|swing""",
    "instrument": """
        piano|n:klavier|m:piano|keys
        guitar|f:gitarre|f:guitarra|campfire
        violin|f:geige|m:violín|bow
        trumpet|f:trompete|f:trompeta|fanfare
        saxophone|n:saxophon|m:saxofón|blues
        accordion|n:akkordeon|m:acordeón|polka""",
    "dish": """
        spaghetti|spaghetti|espaguetis|noodles
        lasagna|lasagne|lasaña|layers
        pizza|pizza|pizza|slices
        omelette|omelett|tortilla|eggs
        pumpkin soup|kürbissuppe|sopa de calabaza|halloween
        chicken curry|hühnercurry|pollo al curry|india
        risotto|risotto|arroz italiano|rice
        hamburgers|hamburger|hamburguesas|fries""",
    "ingredient": """
        cinnamon|zimt|canela|christmas
        garlic|knoblauch|ajo|vampires
        pepper|pfeffer|pimienta|sneeze
        chocolate|schokolade|chocolate|cocoa
        vinegar|essig|vinagre|pickles
        honey|honig|miel|bees
        butter|butter|mantequilla|toast
        parsley|petersilie|perejil|herbs""",
    "animal": """
        elephant|m:elefant|m:elefante|trunk
        giraffe|f:giraffe|f:jirafa|neck
        penguin|m:pinguin|m:pingüino|antarctica
        crocodile|n:krokodil|m:cocodrilo|teeth
        butterfly|m:schmetterling|f:mariposa|wings
        kangaroo|n:känguru|m:canguro|australia
        dolphin|m:delfin|m:delfín|ocean
        squirrel|n:eichhörnchen|f:ardilla|acorns
        hedgehog|m:igel|m:erizo|spikes
        tiger|m:tiger|m:tigre|stripes
        octopus|m:tintenfisch|m:pulpo|tentacles
        gorilla|m:gorilla|m:gorila|jungle
        turtle|f:schildkröte|f:tortuga|shell
        flamingo|m:flamingo|m:flamenco|lagoon""",
    "trait": """
        yellow|gelb|amarill|banana
        golden|golden|dorad|treasure
        hungry|hungrig|hambrient|appetite
        enormous|riesig|enorme|giant
        friendly|freundlich|amistos|smile
        nervous|nervös|nervios|trembling
        beautiful|schön|hermos|beauty
        curious|neugierig|curios|questions
        invisible|unsichtbar|invisible|ghost
        intelligent|intelligent|inteligente|brain
        famous|berühmt|famos|celebrity
        lonely|einsam|solitari|isolation""",
    "action": """
        sleeping|schläft|duerme|snoring
        dancing|tanzt|baila|ballet
        laughing|lacht|ríe|jokes
        waiting|wartet|espera|patience
        hiding|versteckt sich|se esconde|secret
        whispering|flüstert|susurra|rumors
        jumping|springt|salta|trampoline
        celebrating|feiert|celebra|party""",
    "job": """
        engineer|m:ingenieur|m:ingeniero|bridges
        doctor|m:arzt|m:médico|patients
        teacher|m:lehrer|m:profesor|chalk
        lawyer|m:anwalt|m:abogado|court
        carpenter|m:tischler|m:carpintero|wood
        photographer|m:fotograf|m:fotógrafo|lens
        musician|m:musiker|m:músico|concert
        mechanic|m:mechaniker|m:mecánico|engine
        scientist|m:wissenschaftler|m:científico|laboratory
        journalist|m:journalist|m:periodista|newspaper
        president|m:präsident|m:presidente|election
        astronaut|m:astronaut|m:astronauta|rocket
        pirate|m:pirat|m:pirata|parrot""",
    "deed": """
        purchased|gekauft|compró|money
        discovered|entdeckt|descubrió|exploration
        destroyed|zerstört|destruyó|ruins
        forgot|vergessen|olvidó|memory
        borrowed|ausgeliehen|tomó prestado|loan""",
    "side": """
        near|bei|cerca|proximity
        behind|hinter|detrás|rear""",
}
"""Slot name -> its entries."""
