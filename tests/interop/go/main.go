// Drives the unmodified Go client: `produce` or `consume`, options as in tests/interop/README.md.
// Every client stays connected until its standard input ends, so that the caller decides when it has seen enough.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
	"github.com/apache/rocketmq-client-go/v2/rlog"
)

const (
	asyncInFlight = 32
	batchSize     = 10
	compressLevel = 9

	replyWithin     = 30 * time.Second
	replyAgainAfter = 50 * time.Millisecond
)

// line is one JSON object of the output; absent members are not printed.
type line struct {
	Event    string `json:"event"`
	Error    string `json:"error,omitempty"`
	N        *int   `json:"n,omitempty"`
	Body     string `json:"body,omitempty"`
	ID       string `json:"id,omitempty"`
	OffsetID string `json:"offset_id,omitempty"`
	Topic    string `json:"topic,omitempty"`
	Queue    *int   `json:"queue,omitempty"`
	Offset   *int64 `json:"offset,omitempty"`
	Tag      string `json:"tag,omitempty"`
	Keys     string `json:"keys,omitempty"`
	Retry    *int32 `json:"retry,omitempty"`
	Reply    string `json:"reply,omitempty"`
	At       int64  `json:"at,omitempty"`
}

var output sync.Mutex

func (l line) print() {
	text, err := json.Marshal(l)
	if err != nil {
		panic(err)
	}
	output.Lock()
	defer output.Unlock()
	fmt.Println(string(text))
}

type options struct {
	namesrv, topic, group, mode, prefix, tags, model, instance, tag, sql, compress, namespace string
	first, count, delayLevel, shards, failTimes, maxReconsume, retryLevel                     int
	keys, orderly, reply, trace                                                               bool
}

func parse(arguments []string) *options {
	o := &options{}
	set := flag.NewFlagSet("driver", flag.ExitOnError)
	set.StringVar(&o.namesrv, "namesrv", "", "NameServer host:port")
	set.StringVar(&o.topic, "topic", "", "")
	set.StringVar(&o.group, "group", "interop-producer", "")
	set.StringVar(&o.mode, "mode", "sync", "sync, async, oneway, batch, request or transaction")
	set.StringVar(&o.prefix, "prefix", "", "bodies are PREFIX-n")
	set.StringVar(&o.tags, "tags", "", "A,B,…: message n has tag n modulo their number")
	set.StringVar(&o.model, "model", "clustering", "clustering or broadcasting")
	set.StringVar(&o.instance, "instance", "", "")
	set.StringVar(&o.tag, "tag", "*", "tag expression")
	set.StringVar(&o.sql, "sql", "", "SQL92 expression, instead of tags")
	set.StringVar(&o.compress, "compress", "", "ZLIB: every body, however short")
	set.StringVar(&o.namespace, "namespace", "", "what the client prefixes its names by")
	set.IntVar(&o.first, "first", 0, "")
	set.IntVar(&o.count, "count", 1, "")
	set.IntVar(&o.delayLevel, "delay-level", 0, "")
	set.IntVar(&o.shards, "shards", 0, "message n goes to the queue of shard n modulo this")
	set.IntVar(&o.failTimes, "fail-times", 0, "")
	set.IntVar(&o.maxReconsume, "max-reconsume", -1, "")
	set.IntVar(&o.retryLevel, "retry-level", 0, "")
	set.BoolVar(&o.keys, "keys", false, "")
	set.BoolVar(&o.orderly, "orderly", false, "")
	set.BoolVar(&o.reply, "reply", false, "answer each request")
	set.BoolVar(&o.trace, "trace", false, "")
	_ = set.Parse(arguments) // ExitOnError
	return o
}

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("want produce or consume"))
	}
	rlog.SetLogLevel("error")
	o := parse(os.Args[2:])
	var err error
	switch os.Args[1] {
	case "produce":
		err = produce(o)
	case "consume":
		err = consume(o)
	default:
		err = fmt.Errorf("unknown command %s", os.Args[1])
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	line{Event: "error", Error: err.Error()}.print()
	os.Exit(1)
}

func untilInputEnds() {
	_, _ = io.Copy(io.Discard, os.Stdin) // only the end of the input means anything
}

func (o *options) resolver() primitive.NsResolver {
	return primitive.NewPassthroughResolver([]string{o.namesrv})
}

func (o *options) traceConfig() *primitive.TraceConfig {
	return &primitive.TraceConfig{Access: primitive.Local, GroupName: o.group, Resolver: o.resolver()}
}

func (o *options) body(n int) string { return fmt.Sprintf("%s-%d", o.prefix, n) }

func (o *options) message(n int) *primitive.Message {
	message := primitive.NewMessage(o.topic, []byte(o.body(n)))
	if o.tags != "" {
		tags := strings.Split(o.tags, ",")
		message.WithTag(tags[n%len(tags)])
	}
	if o.keys {
		message.WithKeys([]string{"key-" + o.body(n)})
	}
	if o.delayLevel > 0 {
		message.WithDelayTimeLevel(o.delayLevel)
	}
	if o.shards > 0 {
		message.WithShardingKey(fmt.Sprint(n % o.shards))
	}
	return message
}

func produce(o *options) error {
	settings := []producer.Option{
		producer.WithNsResolver(o.resolver()),
		producer.WithGroupName(o.group),
		producer.WithNamespace(o.namespace),
	}
	switch o.compress {
	case "":
	case "ZLIB":
		settings = append(settings, producer.WithCompressMsgBodyOverHowmuch(1), producer.WithCompressLevel(compressLevel))
	default:
		return fmt.Errorf("this client does not compress by %s", o.compress)
	}
	if o.trace {
		settings = append(settings, producer.WithTrace(o.traceConfig()))
	}
	if o.mode == "transaction" {
		return o.transactions(settings)
	}
	if o.shards > 0 {
		settings = append(settings, producer.WithQueueSelector(producer.NewHashQueueSelector()))
	}
	p, err := rocketmq.NewProducer(settings...)
	if err != nil {
		return err
	}
	if err := p.Start(); err != nil {
		return err
	}
	send := map[string]func(*options, rocketmq.Producer) error{
		"sync": sendSync, "async": sendAsync, "oneway": sendOneway, "batch": sendBatch, "request": sendRequests,
	}[o.mode]
	if send == nil {
		return fmt.Errorf("unknown mode %s", o.mode)
	}
	if err := send(o, p); err != nil {
		return err
	}
	line{Event: "done"}.print()
	untilInputEnds()
	return p.Shutdown()
}

func sendSync(o *options, p rocketmq.Producer) error {
	for n := o.first; n < o.first+o.count; n++ {
		at := now()
		result, err := p.SendSync(context.Background(), o.message(n))
		if !o.acknowledged(n, at, result, err) {
			return fmt.Errorf("message %d was not acknowledged", n)
		}
	}
	return nil
}

func sendAsync(o *options, p rocketmq.Producer) error {
	window := make(chan struct{}, asyncInFlight)
	for n := o.first; n < o.first+o.count; n++ {
		n, at := n, now()
		window <- struct{}{}
		err := p.SendAsync(context.Background(), func(_ context.Context, result *primitive.SendResult, err error) {
			o.acknowledged(n, at, result, err)
			<-window
		}, o.message(n))
		if err != nil {
			return err
		}
	}
	for i := 0; i < asyncInFlight; i++ {
		window <- struct{}{}
	}
	return nil
}

func sendOneway(o *options, p rocketmq.Producer) error {
	for n := o.first; n < o.first+o.count; n++ {
		message := o.message(n)
		if err := p.SendOneWay(context.Background(), message); err != nil {
			return err
		}
		line{Event: "sent", N: &n, Body: o.body(n), ID: message.GetProperty(primitive.PropertyUniqueClientMessageIdKeyIndex)}.print()
	}
	return nil
}

// A batch is acknowledged as one: the response joins its offset ids by commas, queue offsets count up from the first.
func sendBatch(o *options, p rocketmq.Producer) error {
	for first := o.first; first < o.first+o.count; first += batchSize {
		var batch []*primitive.Message
		for n := first; n < first+batchSize && n < o.first+o.count; n++ {
			batch = append(batch, o.message(n))
		}
		at := now()
		result, err := p.SendSync(context.Background(), batch...)
		if err != nil {
			return err
		}
		offsetIDs := strings.Split(result.OffsetMsgID, ",")
		if len(offsetIDs) != len(batch) {
			return fmt.Errorf("%d ids for a batch of %d: %q", len(offsetIDs), len(batch), result.OffsetMsgID)
		}
		for i := range batch {
			one := *result
			one.OffsetMsgID, one.QueueOffset = offsetIDs[i], result.QueueOffset+int64(i)
			o.acknowledged(first+i, at, &one, nil)
		}
	}
	return nil
}

func sendRequests(o *options, p rocketmq.Producer) error {
	for n := o.first; n < o.first+o.count; n++ {
		at := now()
		reply, err := p.Request(context.Background(), replyWithin, o.message(n))
		if err != nil {
			return err
		}
		line{Event: "ack", N: &n, Body: o.body(n), At: at, Reply: string(reply.Body)}.print()
	}
	return nil
}

// Of five messages in a row one is committed, one rolled back, two are left to whoever is asked, one is committed.
func (o *options) transactions(settings []producer.Option) error {
	p, err := rocketmq.NewTransactionProducer(local{o}, settings...)
	if err != nil {
		return err
	}
	if err := p.Start(); err != nil {
		return err
	}
	for n := o.first; n < o.first+o.count; n++ {
		at := now()
		result, err := p.SendMessageInTransaction(context.Background(), o.message(n))
		if err != nil {
			return err
		}
		if !o.acknowledged(n, at, result.SendResult, nil) {
			return fmt.Errorf("message %d was not acknowledged", n)
		}
	}
	line{Event: "done"}.print()
	untilInputEnds()
	return p.Shutdown()
}

// local is the program's database.
type local struct{ o *options }

func (l local) number(body []byte) int {
	var n int
	_, _ = fmt.Sscanf(string(body), l.o.prefix+"-%d", &n) // every body is one of ours
	return n
}

func ended(n int) primitive.LocalTransactionState {
	if n%5 == 1 || n%5 == 3 {
		return primitive.RollbackMessageState
	}
	return primitive.CommitMessageState
}

func (l local) ExecuteLocalTransaction(m *primitive.Message) primitive.LocalTransactionState {
	if n := l.number(m.Body); n%5 != 2 && n%5 != 3 {
		return ended(n)
	}
	return primitive.UnknowState
}

func (l local) CheckLocalTransaction(m *primitive.MessageExt) primitive.LocalTransactionState {
	line{Event: "check", Body: string(m.Body), ID: m.TransactionId}.print()
	return ended(l.number(m.Body))
}

func (o *options) acknowledged(n int, at int64, result *primitive.SendResult, err error) bool {
	switch {
	case err != nil:
		line{Event: "fail", N: &n, Body: o.body(n), Error: err.Error()}.print()
		return false
	case result.Status != primitive.SendOK:
		line{Event: "fail", N: &n, Body: o.body(n), Error: fmt.Sprint("status ", result.Status)}.print()
		return false
	}
	line{Event: "ack", N: &n, Body: o.body(n), ID: result.MsgID, OffsetID: result.OffsetMsgID,
		Queue: &result.MessageQueue.QueueId, Offset: &result.QueueOffset, At: at}.print()
	return true
}

func consume(o *options) error {
	settings := []consumer.Option{
		consumer.WithNsResolver(o.resolver()),
		consumer.WithGroupName(o.group),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset),
		consumer.WithConsumerOrder(o.orderly),
		consumer.WithMaxReconsumeTimes(int32(o.maxReconsume)),
		consumer.WithNamespace(o.namespace),
	}
	if o.trace {
		settings = append(settings, consumer.WithTrace(o.traceConfig()))
	}
	if o.instance != "" {
		settings = append(settings, consumer.WithInstance(o.instance))
	}
	if o.model == "broadcasting" {
		settings = append(settings, consumer.WithConsumerModel(consumer.BroadCasting))
	}
	var received listener = o.received
	if o.reply {
		p, err := rocketmq.NewProducer(producer.WithNsResolver(o.resolver()), producer.WithGroupName(o.group+"-replier"))
		if err != nil {
			return err
		}
		if err := p.Start(); err != nil {
			return err
		}
		received = o.answering(&replier{producer: p})
	}
	c, err := rocketmq.NewPushConsumer(settings...)
	if err != nil {
		return err
	}
	selector := consumer.MessageSelector{Type: consumer.TAG, Expression: o.tag}
	if o.sql != "" {
		selector = consumer.MessageSelector{Type: consumer.SQL92, Expression: o.sql}
	}
	if err := c.Subscribe(o.topic, selector, received); err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	line{Event: "ready"}.print()
	untilInputEnds()
	return c.Shutdown()
}

type listener = func(context.Context, ...*primitive.MessageExt) (consumer.ConsumeResult, error)

// answering prints as `received` does, behind the replies.
func (o *options) answering(r *replier) listener {
	return func(ctx context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		for _, m := range messages {
			if consumer.GetReplyToClient(m) == "" {
				continue
			}
			if err := r.reply(ctx, m); err != nil {
				line{Event: "error", Error: err.Error()}.print()
			}
		}
		return o.received(ctx, messages...)
	}
}

// replier answers one requester.
type replier struct {
	producer rocketmq.Producer
	known    atomic.Bool // a reply has reached the requester
}

func (r *replier) reply(ctx context.Context, request *primitive.MessageExt) error {
	body := []byte("re: " + string(request.Body))
	answer, err := consumer.CreateReplyMessage(request, body)
	if err != nil {
		return err
	}
	// CreateReplyMessage (consumer/message_util.go) reads the body as if it were properties, and leaves the message without one.
	answer.Body = body
	for deadline := time.Now().Add(replyWithin); ; time.Sleep(replyAgainAfter) {
		_, err = r.producer.SendSync(ctx, answer)
		if err == nil {
			r.known.Store(true)
			return nil
		}
		// Its first heartbeat, which tells brokers where replies go, the client sends a second after its start (internal/client.go),
		// and not ahead of a request to a topic that exists (prepareSendRequest in producer/producer.go): the first may be too early.
		tooEarly := !r.known.Load() && strings.Contains(err.Error(), "push reply message fail")
		if !tooEarly || time.Now().After(deadline) {
			return err
		}
	}
}

func (o *options) received(ctx context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
	failed := false
	for _, m := range messages {
		queue := m.Queue.QueueId
		line{Event: "message", Body: string(m.Body), ID: m.GetProperty(primitive.PropertyUniqueClientMessageIdKeyIndex),
			OffsetID: m.OffsetMsgId, Topic: m.Topic, Queue: &queue, Offset: &m.QueueOffset, Tag: m.GetTags(), Keys: m.GetKeys(),
			Retry: &m.ReconsumeTimes, At: now()}.print()
		failed = failed || int(m.ReconsumeTimes) < o.failTimes
	}
	if !failed {
		return consumer.ConsumeSuccess, nil
	}
	if o.orderly {
		return consumer.SuspendCurrentQueueAMoment, nil
	}
	if concurrently, ok := primitive.GetConcurrentlyCtx(ctx); ok {
		concurrently.DelayLevelWhenNextConsume = o.retryLevel
	}
	return consumer.ConsumeRetryLater, nil
}

func now() int64 { return time.Now().UnixMilli() }
