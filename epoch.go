package topics

import (
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/tools/security"
)

// epochs names the lives of logs. Each name is greater than those before, also
// than those that the disk has seen when the clock was set back.
type epochs struct {
	mu     sync.Mutex
	newest string
}

const (
	epochTime     = 8 // letters, until the year 2059
	epochRandom   = 4
	epochAlphabet = "0123456789abcdefghijklmnopqrstuvwxyz"
)

// next returns a new name.
func (es *epochs) next() string {
	es.mu.Lock()
	defer es.mu.Unlock()

	at := time.Now().UnixMilli()
	if len(es.newest) >= epochTime {
		if newest, err := strconv.ParseInt(es.newest[:epochTime], 36, 64); err == nil {
			at = max(at, newest+1)
		}
	}
	es.newest = strconv.FormatInt(at, 36) + security.RandomStringWithAlphabet(epochRandom, epochAlphabet)
	return es.newest
}

// saw makes later names greater than this one.
func (es *epochs) saw(epoch string) {
	es.mu.Lock()
	defer es.mu.Unlock()

	es.newest = max(es.newest, epoch)
}

// The positions of messages are written as epoch:offset.
func messageID(epoch string, offset uint64) string {
	return epoch + ":" + strconv.FormatUint(offset, 10)
}

func parseMessageID(id string) (epoch string, offset uint64, ok bool) {
	epoch, number, found := strings.Cut(id, ":")
	if !found || epoch == "" || strings.Trim(number, "0123456789") != "" {
		return "", 0, false
	}
	offset, err := strconv.ParseUint(number, 10, 64)
	return epoch, offset, err == nil
}
