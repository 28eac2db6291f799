// Shows the three rules of a topic record as PocketBase's own rule field (lock, filter
// autocomplete) instead of a JSON box. The fields are JSON only because a text field
// cannot tell null (superusers only) from "" (everyone).
//
// PocketBase's extension API is experimental, so everything here is optional: whatever
// is missing or throws, the JSON box that PocketBase would have shown is shown, and works.

const COLLECTION_ID = "_pb_topics_"; // not the name, the collection may be renamed
const RULES = ["subscribeRule", "publishRule", "presenceRule"];

// The rules whose latest input is the rule field. Their record value is the plain text of
// the rule; under a JSON box it is JSON, and saving must leave it to PocketBase.
const shownAsRule = new Set();

function isRule(props) {
    // the callbacks that show a value get no collection, and a new record has no collectionId
    const collectionId = props?.collection?.id || props?.record?.collectionId;

    return collectionId == COLLECTION_ID && RULES.includes(props.field?.name);
}

// ruleText keeps null and text as they are. Other JSON cannot come from this field and the
// server refuses it as a rule, but where it is stored it must be seen to be corrected.
function ruleText(value) {
    if (typeof value == "string") {
        return value;
    }

    return value == null ? null : JSON.stringify(value);
}

function ruleInput(props) {
    const name = props.field.name;

    return t.div(
        { className: "record-field-input field-type-json" },
        app.components.ruleField({
            name: name, // the API's error of this name is shown below the field
            label: [
                t.i({ className: "ri-shield-user-line", ariaHidden: true }),
                t.span({ className: "txt" }, name),
            ],
            value: () => ruleText(props.record[name]),
            oninput: (value) => (props.record[name] = value),
            autocomplete: (word) => ruleKeys(props.record, name, word),
        }),
        () => props.field.help && t.div({ className: "field-help" }, props.field.help),
    );
}

// ruleKeys lists what a rule of the record may be completed with at word.
function ruleKeys(record, name, word) {
    let keys = ["@topic"];

    for (const [, param] of (record.pattern || "").matchAll(/\{(\w+)(?:\.\.\.)?\}/g)) {
        keys.push("@topic." + param);
    }
    if (name == "subscribeRule" && record.collection) {
        keys.push("@view");
    }
    if (name == "publishRule") {
        keys.push("@request.body.data.", "@request.body.event");
    }

    const search = word.toLowerCase();
    keys = keys.filter((key) => key != word && key.toLowerCase().includes(search));

    try {
        // Rules are evaluated on a record of record.collection. Without one there are no
        // bare fields, which is what an unknown name ("-") gives.
        const more = app.utils.collectionAutocompleteKeys(record.collection || "-", word, { maxKeys: 300 });

        // the body of a topic request is never a record, so its fields would mislead
        keys.push(...more.filter((key) => !/^@request\.body\.\w/.test(key) && !keys.includes(key)));
    } catch (err) {
        console.warn("[topics] no record and request fields to complete with:", err);
    }

    return keys.slice(0, 30);
}

function ruleView(props) {
    const rule = ruleText(props.record[props.field.name]);

    if (!rule) {
        return t.span({ className: "label" }, rule === null ? "Superusers only" : "Everyone");
    }

    if (props.short) {
        return t.span({ className: "txt-code txt-ellipsis", textContent: app.utils.truncate(rule) });
    }

    return app.components.codeBlock({ language: "pbrule", value: rule });
}

function extendJSONField() {
    const json = window.app?.fieldTypes?.json;
    const { input, view, onrecordsave } = json || {};

    // without both a rule could be shown but not saved as typed
    if (typeof input != "function" || typeof onrecordsave != "function") {
        return;
    }

    json.input = function(props) {
        if (isRule(props)) {
            try {
                const el = ruleInput(props);
                shownAsRule.add(props.field.name);
                return el;
            } catch (err) {
                shownAsRule.delete(props.field.name);
                console.warn("[topics] rule field not available, showing JSON:", err);
            }
        }

        return input.apply(this, arguments);
    };

    json.onrecordsave = function(props) {
        if (!isRule(props) || !shownAsRule.has(props.field.name)) {
            return onrecordsave.apply(this, arguments);
        }

        const rule = props.record[props.field.name];
        if (typeof rule == "string" && props.payload) {
            // The server reads a string that is itself JSON ("a", 1, true, ...) as that JSON,
            // so send the rule as a JSON string, which it stores as is.
            props.payload[props.field.name] = JSON.stringify(rule);
        }
    };

    if (typeof view == "function") {
        json.view = function(props) {
            if (isRule(props)) {
                try {
                    return t.div({ className: "record-field-view field-type-json" }, ruleView(props));
                } catch (err) {
                    console.warn("[topics] rule view not available, showing JSON:", err);
                }
            }

            return view.apply(this, arguments);
        };
    }
}

try {
    extendJSONField();
} catch (err) {
    console.warn("[topics] rules are shown as JSON:", err);
}
