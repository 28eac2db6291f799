package topics

import (
	"container/heap"
	"time"
)

// deadline is the end of a grace (an attendee's, a topic's, or that after the
// start), or else the time of something that is due.
type deadline struct {
	at        time.Time
	index     int // in the heap
	attendee  *attendee
	occupancy *occupancy
	flush     string // topic
	restored  bool   // members from before the start are not looked for any more
	alive     bool   // the disk is to be told that there are members
}

// at expects p.mu to be held.
func (p *presence) at(t time.Time) *deadline {
	d := &deadline{at: t}
	heap.Push(&p.endings, d)
	return d
}

// cancel expects p.mu to be held. d may be nil.
func (p *presence) cancel(d *deadline) {
	if d != nil {
		heap.Remove(&p.endings, d.index)
	}
}

// deadlines implement [heap.Interface], the next one first.
type deadlines []*deadline

func (d deadlines) Len() int { return len(d) }

func (d deadlines) Less(i, j int) bool { return d[i].at.Before(d[j].at) }

func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].index, d[j].index = i, j
}

func (d *deadlines) Push(x any) {
	item := x.(*deadline)
	item.index = len(*d)
	*d = append(*d, item)
}

func (d *deadlines) Pop() any {
	last := len(*d) - 1
	item := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	return item
}

// run ends graces, and flushes what was put off.
func (p *presence) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()

	for {
		timer.Reset(p.next())
		select {
		case <-p.stop:
			return
		case <-p.wake:
		case <-timer.C:
		}

		now := time.Now()
		for _, d := range p.take(now) {
			_ = p.guard.run("presence", func() { p.over(d, now) })
		}
	}
}

// over does what a deadline is for.
func (p *presence) over(d *deadline, now time.Time) {
	switch {
	case d.attendee != nil:
		p.ended(d.attendee, now)
	case d.occupancy != nil:
		p.vacated(d.occupancy)
	case d.restored:
		p.endRestore()
	case d.alive:
		p.stayAlive()
	case d.flush != "":
		p.flushQueued(d.flush)
	}
}

// next is how long the goroutine may sleep.
func (p *presence) next() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()

	if len(p.endings) == 0 {
		return time.Hour
	}
	return max(time.Until(p.endings[0].at), 0)
}

// take returns what is over.
func (p *presence) take(now time.Time) (ended []*deadline) {
	p.mu.Lock()
	defer p.mu.Unlock()

	for len(p.endings) > 0 && !p.endings[0].at.After(now) {
		d := heap.Pop(&p.endings).(*deadline)
		switch {
		case d.attendee != nil:
			d.attendee.ending = nil
		case d.occupancy != nil:
			d.occupancy.ending, d.occupancy.over = nil, true
		}
		ended = append(ended, d)
	}
	return ended
}

// queuedFlushes takes the topics that wait for their flush.
func (p *presence) queuedFlushes() (topics []string) {
	p.mu.Lock()
	defer p.mu.Unlock()

	for _, d := range p.endings {
		if d.flush != "" {
			topics = append(topics, d.flush)
		}
	}
	return topics
}

func (p *presence) wakeUp() {
	p.start.Do(func() { p.running.Go(p.run) })
	select {
	case p.wake <- struct{}{}:
	default:
	}
}
