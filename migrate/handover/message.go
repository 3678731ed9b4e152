package handover

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"unicode/utf8"
)

// ID names one migration. It is random, so that no message or journal of another
// migration is taken for one of this.
type ID [16]byte

// NewID makes up an ID.
func NewID() ID {
	var id ID
	// Read never fails: see crypto/rand.
	_, _ = rand.Read(id[:])
	return id
}

// ParseID reads the 32 hexadecimal digits that String writes.
func ParseID(text string) (ID, error) {
	var id ID
	if len(text) != hex.EncodedLen(len(id)) {
		return ID{}, fmt.Errorf("migration ID of %d characters: want %d hexadecimal digits", len(text), hex.EncodedLen(len(id)))
	}
	if _, err := hex.Decode(id[:], []byte(text)); err != nil {
		return ID{}, fmt.Errorf("migration ID %q: %w", text, err)
	}
	return id, nil
}

// String is the ID in 32 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText is String.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is ParseID.
func (id *ID) UnmarshalText(text []byte) (err error) {
	*id, err = ParseID(string(text))
	return err
}

// Verb is what a Message says.
type Verb uint8

// The verbs. Each may be lost, repeated, late or out of order.
const (
	// Ready is said by the destination: it has everything that it needs to run.
	Ready Verb = iota + 1
	// Commit is said by the source: it has let go, and the destination is to own
	// the guest or to refuse.
	Commit
	// Started is said by the destination: it owns the guest, for good.
	Started
	// Refused is said by the destination: it will never own the guest.
	Refused
	// Abort is said by the source if it keeps the guest, and by a destination that
	// has not been ready yet if it gives up.
	Abort
	// Ack is said by the source: Started or Refused came, and is in its journal.
	Ack
)

var verbNames = [...]string{Ready: "READY", Commit: "COMMIT", Started: "STARTED", Refused: "REFUSED", Abort: "ABORT", Ack: "ACK"}

// String is the verb's name.
func (v Verb) String() string { return name(verbNames[:], v) }

// name is entry i of a table whose entry 0 is for what is not set.
func name[T ~uint8](names []string, i T) string {
	if int(i) < len(names) && names[i] != "" {
		return names[i]
	}
	return fmt.Sprintf("unknown (%d)", i)
}

// Message is what the two sides say to each other.
type Message struct {
	Verb Verb
	ID   ID
	// Epoch is the one in which the source owned the guest when the migration
	// began, in messages of either side.
	Epoch uint64
	// Reason says why, for people, with Refused and Abort.
	Reason string
}

// MaxReason is the length in bytes of the longest Reason of a Message or a Record.
const MaxReason = 1024

// MaxMessage is the length in bytes of the longest encoded Message.
const MaxMessage = messageHeader + MaxReason

const messageHeader = 1 + len(ID{}) + 8

// Encode is the message in bytes: verb, ID, epoch (little endian), and the reason, cut
// to MaxReason, up to the end.
func (m Message) Encode() []byte {
	b := make([]byte, 0, messageHeader+len(m.Reason))
	b = append(b, byte(m.Verb))
	b = append(b, m.ID[:]...)
	b = binary.LittleEndian.AppendUint64(b, m.Epoch)
	return append(b, cut(m.Reason)...)
}

// DecodeMessage reads what Encode wrote. What does not fit is refused, whoever sent it.
func DecodeMessage(b []byte) (Message, error) {
	if len(b) < messageHeader || len(b) > MaxMessage {
		return Message{}, fmt.Errorf("handover message of %d bytes: want %d to %d", len(b), messageHeader, MaxMessage)
	}
	m := Message{Verb: Verb(b[0]), Reason: string(b[messageHeader:])}
	copy(m.ID[:], b[1:])
	m.Epoch = binary.LittleEndian.Uint64(b[1+len(m.ID):])
	if m.Verb < Ready || m.Verb > Ack {
		return Message{}, fmt.Errorf("handover message: %s: want 1 to %d; is the peer of another version?", m.Verb, Ack)
	}
	if !utf8.ValidString(m.Reason) {
		return Message{}, errors.New("handover message: the reason is not UTF-8")
	}
	return m, checkEpoch(m.Epoch)
}

// maxEpoch leaves room to count on.
const maxEpoch = 1 << 62

func checkEpoch(epoch uint64) error {
	if epoch == 0 || epoch > maxEpoch {
		return fmt.Errorf("epoch %d: want 1 to 2^62", epoch)
	}
	return nil
}

// cut shortens a reason to what a Message and a Record can hold, in whole characters.
func cut(reason string) string {
	if len(reason) <= MaxReason {
		return reason
	}
	n := MaxReason
	for n > 0 && !utf8.RuneStart(reason[n]) {
		n--
	}
	return reason[:n]
}
