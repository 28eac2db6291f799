package main

import (
	"encoding/json"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/subscriptions"
	"golang.org/x/sync/errgroup"
)

// docsNotify sends a message the way PocketBase's documentation describes for
// custom topics: all clients in chunks of 300, a goroutine for each chunk, which
// sends to those that have the subscription.
func docsNotify(app core.App, topic string, data any) error {
	raw, err := json.Marshal(data)
	if err != nil {
		return err
	}
	m := subscriptions.Message{Name: topic, Data: raw}

	var group errgroup.Group
	for _, chunk := range app.SubscriptionsBroker().ChunkedClients(300) {
		group.Go(func() error {
			for _, client := range chunk {
				if client.HasSubscription(topic) {
					client.Send(m)
				}
			}
			return nil
		})
	}
	return group.Wait()
}
