package migrations

import (
	"database/sql"
	"errors"

	"github.com/pocketbase/pocketbase/core"
)

func init() {
	core.AppMigrations.Register(addPresenceFields, nil, "1763769601_topics_presence.go")
}

// addPresenceFields adds the field for what is shown of members. A collection
// that is gone, or that has the field, is left as it is.
func addPresenceFields(app core.App) error {
	c, err := app.FindCollectionByNameOrId(CollectionID)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	if c.Fields.GetByName("presenceFields") != nil {
		return nil
	}

	if presence, ok := c.Fields.GetByName("presence").(*core.BoolField); ok {
		presence.Help = "Each subscriber is a member of the topic. presenceRule says who may see them."
	}
	at := len(c.Fields)
	for i, f := range c.Fields {
		if f.GetName() == "presence" {
			at = i + 1
		}
	}
	c.Fields.AddAt(at, &core.TextField{
		Id: "topics_presencefields", Name: "presenceFields", System: true, Max: 1_000,
		Help: "Fields of the members' auth records to show besides id and collection: name, avatar. Hidden fields never are, and an e-mail only with emailVisibility.",
	})
	return app.Save(c)
}
