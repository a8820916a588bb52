// Order-events prints every order event, from the first one on.
//
// Arguments: a Kafka broker, the address of a schema registry, and the topic, if it is not orders.events.v1.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/twmb/avro"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sr"
)

// A reader turns records into lines; it asks the registry once per schema.
type reader struct {
	registry *sr.Client
	schemas  map[int]*avro.Schema
	versions map[string]int64 // by order; keep them with your own data instead
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	topic := "orders.events.v1"
	if len(os.Args) > 3 {
		topic = os.Args[3]
	}
	if err := follow(ctx, os.Args[1], os.Args[2], topic); err != nil {
		log.Fatal(err)
	}
}

func follow(ctx context.Context, servers, address, topic string) error {
	registry, err := sr.NewClient(sr.URLs(address))
	if err != nil {
		return err
	}
	events := reader{registry, map[int]*avro.Schema{}, map[string]int64{}}
	// What another member of the group reads meanwhile, we do not see: what comes back may be at any version.
	forget := func(context.Context, *kgo.Client, map[string][]int32) { clear(events.versions) }
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(servers, ",")...),
		kgo.ConsumerGroup(cmp.Or(os.Getenv("GROUP"), "go-example")),
		kgo.ConsumeTopics(topic),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), // an event that is not committed never happened
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(),
		kgo.OnPartitionsRevoked(forget),
		kgo.OnPartitionsLost(forget),
		kgo.BlockRebalanceOnPoll(), // so that we commit only what is still ours
		kgo.WithLogger(kgo.BasicLogger(os.Stderr, kgo.LogLevelWarn, nil)),
	)
	if err != nil {
		return err
	}
	defer client.CloseAllowingRebalance()
	work := context.WithoutCancel(ctx) // what was polled is finished, also while we are being stopped
	for {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil // stopped; what was polled now comes again
		}
		if err := fetches.Err(); err != nil {
			return err
		}
		for record := range fetches.RecordsAll() {
			if err := events.take(work, record); err != nil {
				return err
			}
		}
		// After the work: what a crash leaves out comes again.
		if err := client.CommitUncommittedOffsets(work); err != nil {
			return err
		}
		client.AllowRebalance()
	}
}

func (r *reader) take(ctx context.Context, record *kgo.Record) error {
	var header sr.ConfluentHeader // byte 0, the id of a schema in four bytes, then Avro
	id, body, err := header.DecodeID(record.Value)
	if err != nil {
		return err
	}
	schema, err := r.schema(ctx, id)
	if err != nil {
		return fmt.Errorf("schema %d: %w", id, err)
	}
	var event map[string]any // of the schema it was written with: newer ones may have more fields
	if _, err := schema.Decode(body, &event); err != nil {
		return err
	}
	order, version := string(record.Key), event["version"].(int64)
	last := r.versions[order]
	if version <= last {
		return nil // a repeat
	}
	if last > 0 && version != last+1 {
		return fmt.Errorf("%s goes from version %d to %d", order, last, version)
	}
	r.versions[order] = version
	fmt.Println(order, version, schema.Root().Name)
	return nil
}

func (r *reader) schema(ctx context.Context, id int) (*avro.Schema, error) {
	if known := r.schemas[id]; known != nil {
		return known, nil
	}
	given, err := r.registry.SchemaByID(ctx, id)
	if err != nil {
		return nil, err
	}
	r.schemas[id], err = avro.Parse(given.Schema)
	return r.schemas[id], err
}
