// Publishes one NotificationRequest with franz-go and goavro:
//
//	go run . 127.0.0.1:9092 u1 order-shipped '{"order": "A1"}'
//
// It prints the id once every in-sync replica has the record. The schema and its id come from the schemas folder
// (SCHEMAS, else ../../../schemas).
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/linkedin/goavro/v2"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	tenant = "default"
	topic  = "notify.requests.normal.v1"
)

// schema reads the Avro schema of a record, and the id that the manifest gives it.
func schema(record string) (*goavro.Codec, uint32, error) {
	folder := os.Getenv("SCHEMAS")
	if folder == "" {
		folder = "../../../schemas"
	}
	text, err := os.ReadFile(filepath.Join(folder, "manifest.json"))
	if err != nil {
		return nil, 0, err
	}
	var manifest map[string]struct {
		ID   uint32 `json:"id"`
		File string `json:"file"`
	}
	if err := json.Unmarshal(text, &manifest); err != nil {
		return nil, 0, err
	}
	avsc, err := os.ReadFile(filepath.Join(folder, manifest[record].File))
	if err != nil {
		return nil, 0, err
	}
	codec, err := goavro.NewCodec(string(avsc))
	return codec, manifest[record].ID, err
}

func publish(bootstrap, user, template, data string) (string, error) {
	codec, schemaID, err := schema("NotificationRequest")
	if err != nil {
		return "", err
	}
	// The id is a UUIDv7, and accepted_at is the time in it: the first 48 bits, in milliseconds.
	id, err := uuid.NewV7()
	if err != nil {
		return "", err
	}
	acceptedAt := time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16))

	// Confluent's framing: 0, the schema id in 4 bytes, the Avro body. What is not given here has a default.
	value := binary.BigEndian.AppendUint32([]byte{0}, schemaID)
	value, err = codec.BinaryFromNative(value, map[string]any{
		"notification_id": id.String(),
		"tenant":          tenant,
		"accepted_at":     acceptedAt,
		"user_id":         goavro.Union("string", user),
		"template_id":     goavro.Union("string", template),
		"data":            []byte(data),
		"source":          "go-example",
	})
	if err != nil {
		return "", err
	}

	// Its defaults are what is needed: acks from all, idempotent, keys partitioned like Java's (murmur2).
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(bootstrap, ",")...), kgo.RecordDeliveryTimeout(30*time.Second))
	if err != nil {
		return "", err
	}
	defer client.Close()
	record := &kgo.Record{Topic: topic, Key: []byte(tenant + ":" + user), Value: value}
	return id.String(), client.ProduceSync(context.Background(), record).FirstErr()
}

func main() {
	log.SetFlags(0)
	if len(os.Args) < 4 {
		log.Fatal("usage: publish BOOTSTRAP USER_ID TEMPLATE_ID [DATA]")
	}
	data := "{}"
	if len(os.Args) > 4 {
		data = os.Args[4]
	}
	id, err := publish(os.Args[1], os.Args[2], os.Args[3], data)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(id)
}
